"""The contract of a launcher: a place where attempts run.

A launcher finds the run of an attempt by the attempt's request alone: names of jobs and pods are computed
from it. So a process that starts later can take over from one that died. The launchers `local`, `ray` and
`kubernetes` do not know each other, and none of them imports Airflow.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import StrEnum
from typing import Protocol, runtime_checkable

from airflow_tune_restore.protocol.check import CheckAnswer, CheckRequest
from airflow_tune_restore.protocol.request import RunnerExit, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings


class LauncherName(StrEnum):
    """The name of a launcher, in a DAG (`launcher="ray"`) and in the shell (`--on ray`)."""

    LOCAL = "local"
    RAY = "ray"
    KUBERNETES = "kubernetes"


class RunState(StrEnum):
    """The state of the process, job or pod of one attempt."""

    WAITING = "waiting"  # accepted; it waits for a node, an image or resources
    RUNNING = "running"
    ENDED = "ended"  # exited, or lost for good


class Run(Protocol):
    """One attempt where it runs: a process, a job or a pod."""

    def poll(self) -> RunState:
        """Return its state, after a short wait. The follower calls it until it is `ENDED`.

        Raises:
            TuneRestoreError: If the place was out of reach for too long. The run itself goes on.
        """
        ...

    def output(self) -> Iterator[str]:
        """Yield the lines printed since the last call. The follower calls it after each `poll`."""
        ...

    def stop(self) -> None:
        """Let the runner save a snapshot and exit; return when it has exited.

        A runner that does not exit within the grace period of its launcher is killed. Called on Ctrl-C,
        by another thread than the follower's; `poll` then returns `ENDED`.
        """
        ...

    def exit(self) -> RunnerExit:
        """Return how it exited: exit code and last lines. Called once, after `ENDED`."""
        ...


class Launcher(Protocol):
    """A place where attempts run."""

    def settings(self, settings: RunnerSettings) -> RunnerSettings:
        """Return the settings with the launcher's own added. Called before an attempt is claimed.

        Raises:
            TuneRestoreError: If the place cannot be used.
        """
        ...

    def start(self, request: RunnerRequest) -> Run:
        """Start a claimed attempt, or attach to it if it was started. Called by the claiming process.

        Raises:
            InvalidInputError: If it cannot be started with these settings.
            TuneRestoreError: If the place does not answer.
        """
        ...

    def find(self, request: RunnerRequest) -> Run | None:
        """Return the run of an attempt that was started; None if it is not there.

        Called by the `start` of the local launcher, to attach. It is for a process that takes over an
        attempt without starting it; the shell and the operators only call `start`.
        """
        ...

    def stop_command(self, request: RunnerRequest) -> str:
        """Return the shell command that stops the run of an attempt.

        Shown to a user who does not wait until it has stopped.
        """
        ...


@runtime_checkable
class ChecksTrainable(Protocol):
    """A launcher that can load a trainable before an attempt is claimed: the code is on this machine."""

    def check(self, request: CheckRequest, timeout: timedelta) -> list[CheckAnswer]:
        """Check whether a trainable fits experiments; return one answer per experiment.

        Raises:
            InvalidInputError: If the trainable or the param_space cannot be used for any experiment.
            RunnerError: If no experiment could be checked in time.
        """
        ...


def follow(run: Run, show: Callable[[str], None]) -> RunnerExit:
    """Show the output of a run until it has ended, and return how it exited.

    Raises:
        TuneRestoreError: If the place of the run was out of reach for too long.
    """
    while True:
        state = run.poll()
        for line in run.output():
            show(line)
        if state is RunState.ENDED:
            return run.exit()
