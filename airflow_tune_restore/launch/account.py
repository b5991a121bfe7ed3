"""The account that a runner is given in place of the worker's own.

Only root can start a process as somebody else and end it again, without asking anybody. `sudo` is not
used: it would put the runner's credentials on a command line or leave them to its own rules, and a worker
that is not root cannot signal what it has started.
"""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_tune_restore.exceptions import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whom a process runs as.

    Args:
        name: As the system knows it; the number of one without a name.
        uid: User id, never 0.
        gid: Primary group.
        groups: All groups.
        home: Home directory; "" if it has none.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    def variables(self, directory: str) -> Mapping[str, str]:
        """Return what its environment says of it.

        Args:
            directory: One that it owns, for temporary files. Those of Ray go there, too: `/tmp/ray` holds
                files of whoever ran Ray before, which nobody else may overwrite.
        """
        return {
            "HOME": self.home or directory,
            "USER": self.name,
            "LOGNAME": self.name,
            "TMPDIR": directory,
            "RAY_TMPDIR": directory,
        }


def find_account(user: str) -> Account:
    """Find an account that runners can be started as.

    Args:
        user: Its name, or its number, which needs no entry in the system's list.

    Raises:
        InvalidInputError: If there is none, if it is root's, or if this process may not switch to it.
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
            f"runner_user={user!r} is root, who may read everything; name another."
        )
    if os.geteuid() != 0:
        raise InvalidInputError(
            f"runner_user={user!r}: this worker runs as uid {os.geteuid()}, and only root can start a "
            "runner as somebody else. Leave it out, or run trials elsewhere (launcher)."
        )
    return account


def _without_entry(user: str) -> Account:
    most = 2**32 - 2  # the last one, -1, means "leave it as it is"
    if not (user.isascii() and user.isdigit()) or len(user) > len(str(most)) or int(user) > most:
        raise InvalidInputError(f"runner_user={user!r}: there is no such user on this worker.")
    number = int(user)
    return Account(name=user, uid=number, gid=number, groups=(), home="")
