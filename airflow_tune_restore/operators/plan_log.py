"""The log of the plan task: what happens to the trials of each experiment, in detail for the first."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.protocol.printable import counted, printable, share
from airflow_tune_restore.restore.kept import describe_kept, in_dag
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.summary import describe_waiting

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

_SHOWN_LINES = 50
"""Lines about the trials of one experiment, of each kind."""

MAX_DETAILED, MAX_NAMED = 50, 500
"""Of many experiments, so many have their trials in the log, and so many have a line."""

MAX_LINES = 3000
"""After so many lines about trials, the other experiments have a line each."""


def log_plans(log: "Logger", started: Sequence[tuple[Address, RestorePlan]]) -> None:
    """Log which trials run, which stay as they are, and the warnings.

    Behind the first experiments, each has one line; the last ones are counted.
    """
    room = MAX_LINES
    for number, (address, plan) in enumerate(started[:MAX_NAMED]):
        waits = f"; {describe_waiting(plan.waiting)} for the next DAG run" if plan.waiting else ""
        log.info(
            "%s: restore %s, %s to run, from %s%s",
            *(address, plan.restore_id, share(len(plan.to_run), len(plan.trials), "trial")),
            *(plan.base.name, waits),
        )
        if number < MAX_DETAILED and room > 0:
            room -= _log_trials(log, address, plan)
    others = [plan for _, plan in started[MAX_NAMED:]]
    if others:
        to_run = sum(len(plan.to_run) for plan in others)
        log.info(
            "… and %s more, with %s to run",
            *(counted(len(others), "restore"), counted(to_run, "trial")),
        )


def _log_trials(log: "Logger", address: Address, plan: RestorePlan) -> int:
    """Log what happens to the trials of one experiment, and return in how many lines."""
    log.info("  strategy %s: %s", plan.strategy, plan.strategy_reason)
    to_run = [f"{t.action} {t.title}: {printable(t.reason)}" for t in plan.to_run[:_SHOWN_LINES]]
    lines_logged = 1 + _log_lines(log.info, to_run, len(plan.to_run))
    kept = describe_kept(plan, in_dag)
    lines_logged += _log_lines(log.info, kept, len(kept))
    quarantined = [f"{t.trial_id}: {t.reason}" for t in plan.quarantined]
    for lines in (quarantined, plan.warnings):
        shown = [address.named_in(line) for line in lines[:_SHOWN_LINES]]
        lines_logged += _log_lines(log.warning, shown, len(lines))
    return lines_logged


def _log_lines(log: Callable[..., None], shown: Sequence[str], count: int) -> int:
    for line in shown:
        log("  %s", line)
    has_more = count > len(shown)
    if has_more:
        log("  … and %d more", count - len(shown))
    return len(shown) + has_more
