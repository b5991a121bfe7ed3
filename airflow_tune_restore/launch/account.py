"""The account that runners get in place of the worker's own.

Only root can start a process as another user and stop it again without a password. `sudo` is not used:
the runner's credentials would appear on a command line or depend on sudo's own rules, and a worker that
is not root cannot signal such a process.
"""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.base import LauncherName


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account of this machine.

    Args:
        name: Its name; the uid in digits if it has no name.
        uid: User id, never 0.
        gid: Primary group.
        groups: All groups.
        home: Home directory; "" without one.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    def variables(self, directory: str) -> Mapping[str, str]:
        """Return the environment variables that describe it.

        Args:
            directory: Owned by the account, for temporary files. Ray's go there, too: `/tmp/ray` holds
                files of earlier users of Ray, which other users may not overwrite.
        """
        return {
            "HOME": self.home or directory,
            "USER": self.name,
            "LOGNAME": self.name,
            "TMPDIR": directory,
            "RAY_TMPDIR": directory,
        }


def runner_account(runner_user: str | None, launcher: str) -> Account | None:
    """Return the account of the runners; None for this process's own.

    Raises:
        InvalidInputError: If this process may not switch to that user, or if the launcher starts runners
            on other machines, where the name of a user would protect nothing.
    """
    if runner_user is None:
        return None
    if launcher in (LauncherName.RAY, LauncherName.KUBERNETES):
        raise InvalidInputError(
            f"runner_user={runner_user!r} is for runners on this worker (launcher='local'). With "
            f"launcher={launcher!r} the cluster chooses their user. Leave it out."
        )
    return find_account(runner_user)


def find_account(user: str) -> Account:
    """Find an account that runners can be started as.

    Args:
        user: Its name, or its uid, which needs no entry in the system's list.

    Raises:
        InvalidInputError: If it does not exist, if it is root, or if this process may not switch to it.
    """
    try:
        entry = pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
    except (KeyError, OverflowError, ValueError):
        account = _without_entry(user)
    else:
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        account = Account(
            name=entry.pw_name,
            uid=entry.pw_uid,
            gid=entry.pw_gid,
            groups=tuple(groups),
            home=entry.pw_dir,
        )
    if account.uid == 0:
        raise InvalidInputError(
            f"runner_user={user!r} is root, who may read everything. Give another user."
        )
    if os.geteuid() != 0:
        raise InvalidInputError(
            f"runner_user={user!r}: this worker runs as uid {os.geteuid()}, and only root can start a "
            "runner as another user. Leave it out, or run trials elsewhere (launcher)."
        )
    return account


def _without_entry(user: str) -> Account:
    largest = 2**32 - 2  # the next one, -1, means "leave it as it is"
    if (
        not (user.isascii() and user.isdigit())
        or len(user) > len(str(largest))
        or int(user) > largest
    ):
        raise InvalidInputError(f"runner_user={user!r}: this worker has no such user.")
    number = int(user)
    return Account(name=user, uid=number, gid=number, groups=(), home="")
