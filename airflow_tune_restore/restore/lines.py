"""What a runner prints, as a log shows it. Standard library only."""

from typing import Any

from airflow_tune_restore.experiments.printable import printable
from airflow_tune_restore.restore.request import RunnerProgress

_SHOWN_METRICS = 3
_LINE_LENGTH = 4000


def describe_line(line: str, metric: str | None, *, of_many: bool = False) -> str:
    """Return the log form of one line of a runner: a reported result in words, others as they are.

    With `of_many`, a result says whose it is.
    """
    progress = RunnerProgress.from_line(line)
    if progress is None:
        return printable(line, _LINE_LENGTH)
    names = [name for name in (metric,) if name in progress.metrics]
    names += [name for name in progress.metrics if name not in names]
    shown = [f"{name}={_number(progress.metrics[name])}" for name in names[:_SHOWN_METRICS]]
    whose = f"{progress.trial_id}: " if of_many else ""
    return printable(f"{whose}{', '.join([f'iteration {progress.iteration}', *shown])}")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
