"""What Airflow does with the chain: a process a try, retries, and the DAG run of the next night."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns.chain import DONE, FAILED, SKIPPED, Chain

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.support.airflow.home", "campaigns.step"])
KILLED = "killed"
TRY_SECONDS = 1800.0
"""After this a try is hopeless: the campaign fails."""


class RunFailedError(Exception):
    """A DAG run did not come to its end."""


class Night:
    """One DAG run of the chain.

    Args:
        chain: What its tasks are told.
        run_id: Its id; the same for all tries.
        before_try: Called with step and number of the try, before each.
        after_try: Called after each, when its process has ended; heals the storage, say.
        tries: How often a task is tried.
    """

    def __init__(
        self,
        chain: Chain,
        run_id: str,
        before_try: Callable[["Night", str, int], None],
        after_try: Callable[["Night", str, int], None],
        tries: int = 12,
    ) -> None:
        self.chain = chain
        self.run_id = run_id
        self.operator_pid = 0
        self.is_abandoned = False
        self._before_try = before_try
        self._after_try = after_try
        self._tries = tries

    def carry_out(self) -> None:
        """Run plan, trials and commit, each retried.

        Raises:
            RunFailedError: If one of them failed for good.
        """
        _, (ended, items, pushed) = self._task("plan", "plan", None)
        if ended == SKIPPED or self.is_abandoned:
            return
        for number, item in enumerate(items):
            self._task(f"trial {number}", "trial", item)
            if self.is_abandoned:
                return
        self._task("commit", "commit", pushed["outcomes"])

    def _task(self, name: str, step: str, argument: Any) -> tuple[int, tuple[str, Any, Any]]:
        for number in range(1, self._tries + 1):
            self._before_try(self, name, number)
            ended = self._try(step, argument)
            self._after_try(self, name, number)
            if ended[0] in (DONE, SKIPPED) or self.is_abandoned:
                return number, ended
            if ended[0] == FAILED:
                raise RunFailedError(f"{name} of {self.run_id} failed: {ended[1]}")
            if ended[0] != KILLED:
                time.sleep(1.0)
        raise RunFailedError(f"{name} of {self.run_id} failed {self._tries} times: {ended[1]}")

    def _try(self, step: str, argument: Any) -> tuple[str, Any, Any]:
        ours, theirs = _FORKS.Pipe(duplex=False)
        process = _FORKS.Process(
            target=_run_step, args=(self.chain, step, self.run_id, argument, theirs)
        )
        process.start()
        theirs.close()
        self.operator_pid = process.pid or 0
        try:
            ended = ours.recv() if ours.poll(TRY_SECONDS) else None
        except EOFError:
            ended = (KILLED, "its process was killed", {})
        if ended is None:
            process.kill()
            raise RunFailedError(f"{step} of {self.run_id} took more than {TRY_SECONDS:.0f} s")
        process.join()
        self.operator_pid = 0
        return ended


def _run_step(*arguments: Any) -> None:
    from campaigns.step import run_step  # with Airflow, which the server has imported

    run_step(*arguments)


def children(pid: int) -> list[int]:
    """Return the living children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append(int(path.name))
    return found


def kill(pid: int) -> bool:
    """`kill -9`; False if it had ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
