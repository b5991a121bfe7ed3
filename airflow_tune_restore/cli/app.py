"""The program `tune-restore`. It is light, because Ctrl-C can come while the commands are imported."""

import atexit
import os
import signal
from collections.abc import Sequence
from types import FrameType


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> None:
    """Import the commands, and run the one that was asked for.

    `arguments` are those of the process by default, and `program` is its name in messages.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a background job of a script
        signal.signal(signal.SIGINT, _stop_at_once)
    atexit.register(_keep_exit_code)  # the first to be registered is the last to be called
    from airflow_tune_restore.cli.commands import run

    run(arguments, program=program)


def _stop_at_once(number: int, _frame: FrameType | None) -> None:
    """End the process, as long as it has nothing to clean up.

    An exception amid an import may be lost, or change the exit code.
    """
    os.write(2, b"Stopped.\n")
    os._exit(128 + number)


def _keep_exit_code() -> None:
    """Ignore signals: the command is over. One would kill Python once it has undone the handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
