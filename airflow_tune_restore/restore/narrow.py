"""Experiment + `only` -> the trials that a restore takes, as if the user had named them (`trials`)."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    KeyNotFoundError,
    LinkRefusedError,
    RecordUnreadableError,
    TooLargeError,
)
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.trial import UNFINISHED, Trial, TrialStatus
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.failures import Cause, Failure, classify
from airflow_tune_restore.protocol.printable import share
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeType
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.restore.ledger import Ledger
from airflow_tune_restore.restore.only import Only
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.planner import choices_for, why_one_run
from airflow_tune_restore.storage.base import ERROR_FILE, ObjectStore, as_time
from airflow_tune_restore.storage.in_flight import for_each

_SKIP = ResumeType.SKIP

ERROR_FILE_BYTES = 1024**2
"""Of a larger one the cause is unknown. Ray adds some kilobytes with each failure."""


class Narrowed(NamedTuple):
    """The choices that `only` leaves of those of the user.

    Args:
        choices: The choices, with the ids of the trials that are taken.
        note: For the user; "" if there is nothing to note.
        takes_none: Whether no trial is taken, for the reason in `note`.
    """

    choices: PlanChoices
    note: str = ""
    takes_none: bool = False


def narrow(
    store: ObjectStore,
    experiment: Experiment,
    ledger: Ledger,
    choices: PlanChoices,
    only: Only,
    prefix: str | None,
) -> Narrowed:
    """Apply `only` to the trials that the flags would run. It never adds one to them.

    Raises:
        UnknownTrialError: If the experiment has none of the trials that are named.
    """
    if why_not := only.why_not(experiment.uri, prefix):
        return Narrowed(choices, why_not, takes_none=True)
    known = {trial.trial_id for trial in experiment.trials}
    if restarted := _restarted(store, set(choices.trials) - known):
        still = tuple(name for name in choices.trials if name not in restarted)
        choices = replace(choices, trials=still)
        if not still:
            return Narrowed(
                choices, "all chosen trials have started over under new ids", takes_none=True
            )
    if not only.narrows:
        return Narrowed(choices)
    missing = [name for name in only.trial if name not in known]
    experiment.check_has(choices.trials)
    if len(missing) == len(only.trial):
        experiment.check_has(missing)
    chosen = choices_for(experiment, choices)
    to_run = [t for t in experiment.trials if chosen.get(t.trial_id, _SKIP) is not _SKIP]
    taken = _taken(store, to_run, ledger, only)
    if not taken:
        return Narrowed(choices, f"no trial that would run matches {only}", takes_none=True)
    if why := why_one_run(experiment, choices):
        if len(taken) == len(to_run) == _count_changing(experiment, chosen):
            return Narrowed(choices)  # nothing is left out
        return Narrowed(
            choices,
            f"{only} matches {share(len(taken), len(to_run), 'trial')} to run, and one run restores "
            f"all or none of them ({why}); "
            "strategy='per_trial' (--strategy per_trial) restores them without the others",
            takes_none=True,
        )
    note = f"only: it has no trial {', '.join(missing)}" if missing else ""
    return Narrowed(replace(choices, trials=taken), note)


def _count_changing(experiment: Experiment, chosen: Mapping[str, ResumeType]) -> int:
    """Return how many trials a restore changes: those that it runs, and those that become TERMINATED."""
    return sum(
        chosen.get(trial.trial_id, _SKIP) is not _SKIP or trial.status in UNFINISHED
        for trial in experiment.trials
    )


def _restarted(store: ObjectStore, missing: set[str]) -> set[str]:
    """Return which of the trials that are missing have started over under new ids.

    A restore in parts names them again in its later parts.
    """
    found: set[str] = set()
    for restore_id in lease.earlier_restores(store, "") if missing else ():
        with suppress(KeyNotFoundError, RecordUnreadableError):
            trials = read_plan(store, restore_id).trials
            found |= {trial.trial_id for trial in trials if trial.new_trial_id}
    return missing & found


def _taken(store: ObjectStore, trials: list[Trial], ledger: Ledger, only: Only) -> tuple[str, ...]:
    found = [trial for trial in trials if only.takes(trial)]
    if not only.needs_failure:
        return tuple(trial.trial_id for trial in found)
    no_history = History()
    failures = for_each(
        lambda t: _last_failure(store, t, ledger.trials.get(t.trial_id, no_history)), found
    )
    return tuple(
        trial.trial_id
        for trial, failure in zip(found, failures, strict=True)
        if failure is not None and only.takes_failure(*failure)
    )


def _last_failure(store: ObjectStore, trial: Trial, history: History) -> tuple[str, str] | None:
    """Return cause and error of the last failure of a trial; None if it never failed.

    It is in the ledger, unless a result shows that something else ran the trial since.
    """
    has_failed = trial.status is TrialStatus.ERROR
    attempts = history.released + history.failures
    if attempts:
        last = attempts[-1]
        ended = as_time(last.ended_at)
        if not has_failed or ended is None or ended.timestamp() >= trial.last_result_time:
            return last.cause, _in_a_line(last.type, last.message)
    if not has_failed:
        return None
    failure = _read_error_file(store, trial)
    return failure.cause, _in_a_line(failure.type, failure.message)


def _read_error_file(store: ObjectStore, trial: Trial) -> Failure:
    if trial.trial_dir is None:
        return Failure(cause=Cause.UNKNOWN)
    try:
        body = store.get(f"{trial.trial_dir}/{ERROR_FILE}", max_bytes=ERROR_FILE_BYTES)
    except (KeyNotFoundError, TooLargeError, LinkRefusedError, CannotBeFollowedError):
        return Failure(cause=Cause.UNKNOWN)
    return classify(body.decode(errors="replace"))


def _in_a_line(kind: str, message: str) -> str:
    return ": ".join(filter(None, (kind, message)))
