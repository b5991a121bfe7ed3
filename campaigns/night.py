"""What Airflow does with the chain: a process a try, retries, and the DAG run of the next night."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
        at_once: Whether the tasks of trials run at the same time.
    """

    def __init__(
        self,
        chain: Chain,
        run_id: str,
        before_try: Callable[["Night", str, int], None],
        after_try: Callable[["Night", str, int], None],
        tries: int = 12,
        at_once: bool = False,
    ) -> None:
        self.chain = chain
        self.run_id = run_id
        self.operator_pids: dict[str, int] = {}
        self.is_abandoned = False
        self._before_try = before_try
        self._after_try = after_try
        self._tries = tries
        self._at_once = at_once
        self._locked = threading.Lock()

    def carry_out(self) -> None:
        """Run plan, trials and commit, each retried.

        Raises:
            RunFailedError: If one of them failed for good.
        """
        _, (ended, items, pushed) = self._task("plan", "plan", None)
        if ended == SKIPPED or self.is_abandoned:
            return
        with ThreadPoolExecutor(len(items) if self._at_once else 1) as pool:
            list(pool.map(self._trial, range(len(items)), items))
        if not self.is_abandoned:
            self._task("commit", "commit", pushed["outcomes"])

    def abandon(self) -> None:
        """Try no task again; those that run end with their machine."""
        self.is_abandoned = True
        for pid in list(self.operator_pids.values()):
            kill(pid)

    def _trial(self, number: int, item: Any) -> None:
        if not self.is_abandoned:
            self._task(f"trial {number}", "trial", item)

    def _task(self, name: str, step: str, argument: Any) -> tuple[int, tuple[str, Any, Any]]:
        for number in range(1, self._tries + 1):
            with self._locked:
                self._before_try(self, name, number)
            ended = self._try(name, step, argument)
            with self._locked:
                self._after_try(self, name, number)
            if ended[0] in (DONE, SKIPPED) or self.is_abandoned:
                return number, ended
            if ended[0] == FAILED:
                raise RunFailedError(f"{name} of {self.run_id} failed: {ended[1]}")
            if ended[0] != KILLED:
                time.sleep(1.0)
        raise RunFailedError(f"{name} of {self.run_id} failed {self._tries} times: {ended[1]}")

    def _try(self, name: str, step: str, argument: Any) -> tuple[str, Any, Any]:
        ours, theirs = _FORKS.Pipe(duplex=False)
        process = _FORKS.Process(
            target=_run_step, args=(self.chain, step, self.run_id, argument, theirs)
        )
        process.start()
        theirs.close()
        self.operator_pids[name] = process.pid or 0
        try:
            ended = ours.recv() if ours.poll(TRY_SECONDS) else None
        except EOFError:
            ended = (KILLED, "its process was killed", {})
        if ended is None:
            process.kill()
            raise RunFailedError(f"{step} of {self.run_id} took more than {TRY_SECONDS:.0f} s")
        process.join()
        del self.operator_pids[name]
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
