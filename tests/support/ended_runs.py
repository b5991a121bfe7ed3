"""Runs that have ended when they start: for launchers that stand for real ones in tests of the shell."""

from collections.abc import Iterator

from airflow_tune_restore.launch.base import RunState
from airflow_tune_restore.protocol.request import RunnerExit
from airflow_tune_restore.restore.claim import RunnerSettings


class EndedRuns:
    """A launcher that is its own run, and leaves the settings as they are."""

    def settings(self, settings: RunnerSettings) -> RunnerSettings:
        return settings

    def poll(self) -> RunState:
        return RunState.ENDED

    def output(self) -> Iterator[str]:
        return iter(())

    def exit(self) -> RunnerExit:
        return RunnerExit(exit_code=0)
