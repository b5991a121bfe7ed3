"""The log of the plan task: what happens to the trials of one experiment."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.protocol.printable import printable, share
from airflow_tune_restore.restore.kept import describe_kept, in_dag
from airflow_tune_restore.restore.plan import RestorePlan

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

_SHOWN_LINES = 50


def log_plan(log: "Logger", address: Address, plan: RestorePlan) -> None:
    """Log which trials run, which stay as they are, and the warnings."""
    log.info(
        "%s: restore %s, %s to run, from %s",
        *(address, plan.restore_id, share(len(plan.to_run), len(plan.trials), "trial")),
        plan.base.name,
    )
    log.info("  strategy %s: %s", plan.strategy, plan.strategy_reason)
    to_run = [f"{t.action} {t.title}: {printable(t.reason)}" for t in plan.to_run]
    _log_lines(log.info, to_run)
    _log_lines(log.info, describe_kept(plan, in_dag))
    quarantined = [f"{t.trial_id}: {t.reason}" for t in plan.quarantined]
    for lines in (quarantined, plan.warnings):
        _log_lines(log.warning, [address.named_in(line) for line in lines])


def _log_lines(log: Callable[..., None], lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN_LINES]:
        log("  %s", line)
    if len(lines) > _SHOWN_LINES:
        log("  … and %d more", len(lines) - _SHOWN_LINES)
