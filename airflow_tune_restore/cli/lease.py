"""How the shell takes the lease of a restore that died: it shows the wait, and breaks it if told to."""

import shlex
import sys
from collections.abc import Callable

from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.lease_objects import AskHolder, HolderStatus, LeaseStatus
from airflow_tune_restore.protocol.lease_watch import OnWait, Watch, refusal


def refuse_without_terminal() -> None:
    """Refuse a question that no one can answer (InvalidInputError)."""
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "--break-lease asks before it breaks a lease, which needs a terminal. Add --yes "
            "if you know that the restore is dead. Nothing was started."
        )


def ask_user(progress: Progress, *, yes: bool) -> AskHolder:
    """Return a function that asks the user whether a holder is dead. With `yes` it takes that as given.

    It raises LeaseHeldError if the user does not confirm.
    """

    def ask(status: LeaseStatus) -> HolderStatus:
        question = (
            f"{status.describe()} A restore whose trials all wait in a queue (of Airflow, of a Ray "
            "cluster, of Kubernetes) gives no sign of life either. If it lives, it loses its lease and "
            "stops. Is it dead, and do you break its lease?"
        )
        if not (yes or progress.confirm(question)):
            raise refusal(status)
        return HolderStatus(has_ended=True, found="You have confirmed that it is dead")

    return ask


def name_command(status: LeaseStatus) -> HolderStatus:
    """Return that nothing is known of a holder, and the command for a user who knows more."""
    del status
    name, *arguments = sys.argv[1:]
    command = shlex.join(["tune-restore", name, "--break-lease", *arguments])  # before any `--`
    found = f"If you know that it is dead, do not wait: `{command}`"
    return HolderStatus(has_ended=False, found=found)


def show_waits(progress: Progress) -> OnWait:
    """Return a function that shows who is watched, and then counts down."""

    def show(watch: Watch) -> Callable[[float], None]:
        progress.warn(watch.describe())
        return lambda left: progress.count_down(left, watch.seconds)

    return show
