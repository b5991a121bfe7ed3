"""The plan of a restore as a preview, with the flags as switches. Writes nothing."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.kept import FATES, describe_kept, fate_of
from airflow_tune_restore.restore.plan import TrialPlan
from airflow_tune_restore.restore.prepare import preview_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.views.showable import showable

MAX_TRIALS = 2000
"""Trials of one answer: nobody reads more, and a browser draws them at once."""

_LONGEST_STALE_SECONDS = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSwitches:
    """The switches of a preview. Their names and defaults are those of `PlanChoices` and of Ray's flags.

    Args:
        stale_after: Seconds of silence after which the experiment counts as dead.
    """

    resume_unfinished: bool = True
    resume_errored: bool = False
    restart_errored: bool = False
    resume_cut_short: bool = False
    allow_scratch: bool = False
    newest_checkpoint: bool = False
    ignore_tuner: bool = False
    stale_after: float = DEFAULT_STALE_AFTER.total_seconds()

    def options(self) -> PrepareOptions:
        """Return the options of the preview (InvalidInputError if a number is out of its bounds)."""
        seconds = self.stale_after
        if not (math.isfinite(seconds) and 0 <= seconds <= _LONGEST_STALE_SECONDS):
            raise InvalidInputError(
                f"stale_after={seconds!r} is not a number of seconds from 0 to a year. Correct it."
            )
        flags = ResumeFlags.from_flags(
            resume_unfinished=self.resume_unfinished,
            resume_errored=self.resume_errored,
            restart_errored=self.restart_errored,
            resume_cut_short=self.resume_cut_short,
        )
        choices = PlanChoices(
            flags=flags,
            allow_scratch=self.allow_scratch,
            newest_checkpoint=self.newest_checkpoint,
            ignore_tuner=self.ignore_tuner,
        )
        return PrepareOptions(choices=choices, stale_after=timedelta(seconds=seconds))


def view_plan(
    store: ObjectStore,
    switches: PlanSwitches,
    *,
    ask_holder: AskHolder | None = None,
    named: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Return what a restore would do now, trial by trial, and what would refuse it.

    The trials that run come first; the count of those that are left out is `hidden`. `ask_holder` returns
    whether a restore that looks alive is known to have ended. `named` returns a sentence with the address
    that commands need in place of the store's URI.

    Raises:
        InvalidInputError: If a switch is not valid.
        NotStartedError, StateUnreadableError: If there is nothing to plan.
        StorageError: If the store does not answer.
    """
    plan, refusals = preview_restore(store, replace(switches.options(), ask_holder=ask_holder))
    counts = Counter(map(fate_of, plan.trials))
    trials = sorted(plan.trials, key=lambda trial: FATES.index(fate_of(trial)))
    view = {
        "strategy": plan.strategy.value,
        "strategy_reason": plan.strategy_reason,
        "samples_left": plan.samples_left,
        "warnings": [named(warning) for warning in plan.warnings],
        "refusals": [named(str(error)) for error in refusals],
        "state_file": plan.base.name,
        "to_run": len(plan.to_run),
        "total": len(plan.trials),
        "counts": {fate: counts[fate] for fate in FATES if counts[fate]},
        "kept": describe_kept(plan, str),
        "trials": [_describe(trial, named) for trial in trials[:MAX_TRIALS]],
        "hidden": max(0, len(trials) - MAX_TRIALS),
    }
    shown: dict[str, Any] = showable(view)
    return shown


def _describe(trial: TrialPlan, named: Callable[[str], str]) -> dict[str, Any]:
    return {
        "trial_id": trial.trial_id,
        "status": trial.status.value,
        "action": trial.action.value,
        "checkpoint": trial.checkpoint,
        "iteration": trial.iteration if trial.runs else None,
        "reason": named(trial.reason),
        "runs_with": trial.runs_with.value if trial.runs_with is not None else None,
        "quarantined": trial.quarantined,
        "parameters": trial.parameters,
    }
