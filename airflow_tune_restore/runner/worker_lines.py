"""The lines that Ray's workers print, told apart by the trial that each worker trains.

Ray sends all of them to the driver, with the address and the id of their process (2.60). Which process
trains which trial is known a little later: until then its lines wait.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow_tune_restore.runner.reporter import KEPT_LINES

MOST_PROCESSES = 64
"""Of so many processes without a trial the newest lines are kept: Ray starts some ahead of time."""

_NAME = "tune_restore"

Process = tuple[str, str]
"""IP address and process id."""


class WorkerLines:
    """Gives each line of a worker to the trial that it trains.

    Args:
        deliver: Called with a planned trial id and its new lines, by a thread of Ray.
    """

    def __init__(self, deliver: Callable[[str, Sequence[str]], None]) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()
        self._owners: dict[Process, str] = {}
        self._waiting: dict[Process, deque[str]] = {}

    def start(self) -> None:
        """Take the lines from now on."""
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.add_handler(_NAME, self.take)

    def stop(self) -> None:
        """Take no more lines."""
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler(_NAME)

    def take(self, batch: Mapping[str, Any]) -> None:
        """Take the lines that one process has printed, as Ray sends them."""
        process = (str(batch.get("ip")), str(batch.get("pid")))
        lines = [str(line) for line in batch.get("lines") or ()]
        with self._lock:
            owner = self._owners.get(process)
            if owner is None:
                self._keep(process, lines)
                return
        self._deliver(owner, lines)

    def _keep(self, process: Process, lines: Sequence[str]) -> None:
        self._waiting.setdefault(process, deque(maxlen=KEPT_LINES)).extend(lines)
        while len(self._waiting) > MOST_PROCESSES:
            self._waiting.pop(next(iter(self._waiting)))

    def assign(self, ip: str, pid: int, owner: str) -> None:
        """Give the lines of a process to a trial from now on, and those that wait."""
        process = (ip, str(pid))
        with self._lock:
            self._owners[process] = owner
            waiting = self._waiting.pop(process, ())
        if waiting:
            self._deliver(owner, list(waiting))

    def leave(self, owner: str) -> None:
        """Give no more lines to a trial."""
        with self._lock:
            self._owners = {p: known for p, known in self._owners.items() if known != owner}
