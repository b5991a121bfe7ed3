"""Experiment + flags -> plan. Pure, and the same answers as Ray's TuneController.

Mirrors `TuneController._requeue_restored_trials` (ray.tune.execution.tune_controller, 2.60): trials are
taken newest `last_result_time` first; a skipped unfinished trial becomes TERMINATED, a skipped ERROR
stays ERROR. What Ray leaves to chance (a checkpoint that is gone) is decided here and said in words.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from shlex import quote

import msgspec

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.ends import is_budget_spent
from airflow_tune_restore.experiments.experiment import (
    DEFAULT_SCHEDULER,
    Experiment,
    describe_lost_searcher,
)
from airflow_tune_restore.experiments.trial import UNFINISHED, Trial, TrialStatus
from airflow_tune_restore.protocol.checkpoints import CheckpointChoice
from airflow_tune_restore.protocol.request import RUN_ACTIONS, TrialAction
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.plan import (
    DEFAULT_MAX_MEMORY_BYTES,
    RestorePlan,
    Strategy,
    TrialPlan,
    describe_quarantine,
)

_LOST_BY_FORCING = {
    "HyperBandScheduler": "its brackets compare trials with each other",
    "HyperBandForBOHB": "its brackets compare trials with each other",
    "AsyncHyperBandScheduler": "its rungs compare trials with each other",
    "ASHAScheduler": "its rungs compare trials with each other",
    "MedianStoppingRule": "it compares each trial with the median of the others",
    "PopulationBasedTraining": "it copies good trials over bad ones",
    "PB2": "it copies good trials over bad ones",
}

_OWN_SEARCHER = (
    "search_alg is not used: the experiment's own searcher is not lost, and draws the samples"
)
_SPENT_BUDGET = (
    "time_budget_s of the experiment is spent: a resumed trial ends at once, as with Tuner.restore"
)

_NOTHING = ResumeFlags(unfinished=ResumeType.SKIP)


def trials_to_run(experiment: Experiment, flags: ResumeFlags) -> list[Trial]:
    """Return the trials the flags take up again, in Ray's order."""
    return _wanted(experiment, choices_for(experiment, flags))


def choices_for(experiment: Experiment, flags: ResumeFlags) -> dict[str, ResumeType]:
    """Return what the flags say of each trial, by trial id."""
    cut_short = {trial.trial_id for trial in experiment.stopped_by_fail_fast}
    return {
        trial.trial_id: flags.choice_for(trial.status, is_cut_short=trial.trial_id in cut_short)
        for trial in experiment.trials
    }


def build_plan(  # noqa: PLR0913  what the user chose, by name
    experiment: Experiment,
    *,
    restore_id: str,
    flags: ResumeFlags,
    checkpoints: Mapping[str, CheckpointChoice],
    strategy: str = "auto",
    fresh_budget: bool = False,
    trim_results: bool = False,
    remember_scheduler: bool = False,
    allow_scratch: bool = False,
    can_search: bool = False,
    quarantined: Mapping[str, str] | None = None,
    max_attempts: int | None = None,
    max_memory_bytes: float = DEFAULT_MAX_MEMORY_BYTES,
) -> RestorePlan:
    """Decide what becomes of each trial.

    Args:
        experiment: As read.
        restore_id: Id of the restore the plan is for.
        flags: Which trials are taken up again.
        checkpoints: What each trial that may be resumed can start from, by trial id.
        strategy: `auto`, or one of `Strategy` to force it.
        fresh_budget: Give resumed trials their failure budget back (Ray keeps it spent).
        trim_results: Drop result rows past the checkpoint before resuming (Ray repeats them).
        remember_scheduler: Tell ASHA and MedianStopping what all trials reported before.
        allow_scratch: Let a trial whose checkpoints are all gone start over; else it is kept as it is.
        can_search: A searcher is named, for samples whose own searcher is lost.
        quarantined: Why trials are in quarantine, by trial id; they are kept as they are.
        max_attempts: Failed attempts after which the commit puts a trial in quarantine.
        max_memory_bytes: Most that a trial is given after it ran out of memory.

    Raises:
        InvalidInputError: If `strategy` is none.
    """
    taken = {trial.trial_id for trial in experiment.trials}
    choices = choices_for(experiment, flags)
    wanted = _wanted(experiment, choices)
    reasons: dict[str, str] = {}
    if quarantined:
        would_run = {trial.trial_id for trial in wanted if not _ended(trial)}
        reasons = {key: why for key, why in quarantined.items() if key in would_run}
    trainable = _trainable_name(experiment, wanted)
    foreign = {t.trial_id for t in wanted if t.trainable_name not in ("", trainable)}
    trials = tuple(
        _quarantined(trial, reasons[trial.trial_id], experiment.uri)
        if trial.trial_id in reasons
        else _keep(trial, _foreign_reason(trial, trainable))
        if trial.trial_id in foreign
        else _plan_trial(
            trial,
            choices[trial.trial_id],
            checkpoints.get(trial.trial_id),
            lambda trial_id: _new_trial_id(restore_id, trial_id, taken),
            allow_scratch=allow_scratch,
        )
        for trial in _in_order(experiment)
    )
    chosen, reason = _choose_strategy(experiment, strategy)
    tuner = experiment.tuner
    left = experiment.samples_left
    lost = "" if can_search else experiment.searcher_lost
    runs = any(trial.action in RUN_ACTIONS for trial in trials)
    return RestorePlan(
        restore_id=restore_id,
        experiment=experiment.uri,
        base=experiment.state_file,
        trainable_name=trainable,
        flags=flags,
        strategy=chosen,
        strategy_reason=reason,
        samples_left=left,
        searcher_lost=lost,
        metric=tuner.metric if tuner else None,
        mode=tuner.mode if tuner else None,
        trials=trials,
        warnings=(
            *experiment.warnings,
            *([describe_quarantine(experiment.uri, list(reasons))] if reasons else ()),
            *_refusals(experiment, trials, choices),
            *([describe_lost_searcher(experiment.uri, left, lost)] if lost else ()),
            *([_OWN_SEARCHER] if can_search and not experiment.searcher_lost else ()),
            *([_SPENT_BUDGET] if runs and is_budget_spent(experiment.state) else ()),
        ),
        fresh_budget=fresh_budget,
        trim_results=trim_results,
        remember_scheduler=remember_scheduler,
        max_attempts=max_attempts,
        max_memory_bytes=max_memory_bytes,
        ignore_tuner=experiment.ignores_tuner,
        # one real run draws what is left, as Tuner.restore does; alone, a trial cannot
        continues_search=chosen is Strategy.WHOLE_EXPERIMENT and left != 0 and not lost,
    )


def build_continuation(
    experiment: Experiment, *, restore_id: str, can_search: bool = False
) -> RestorePlan:
    """Plan to draw the samples that are left, and nothing else: every trial stays as it is.

    An experiment that never started is one whose samples are all left.

    Raises:
        InvalidInputError: If nobody can draw them.
    """
    plan = build_plan(
        experiment, restore_id=restore_id, flags=_NOTHING, checkpoints={}, can_search=can_search
    )
    if plan.searcher_lost:
        lost = describe_lost_searcher(experiment.uri, plan.samples_left, plan.searcher_lost)
        raise InvalidInputError(f"{lost[0].upper()}{lost[1:]}. No run was started.")
    kept = tuple(
        msgspec.structs.replace(
            trial, action=TrialAction.KEEP, reason=f"{trial.status}, stays as it is"
        )
        for trial in plan.trials
    )
    return replace(
        plan,
        trials=kept,
        strategy=Strategy.WHOLE_EXPERIMENT,
        strategy_reason="the original searcher draws the samples that are left",
        continues_search=True,
    )


def _trainable_name(experiment: Experiment, wanted: list[Trial]) -> str:
    """Return the name of the trainable that is restored: the one Ray demands, that of `tuner.pkl`.

    Without one it is that of most trials to be run, so that of two trainables each has its turn.
    """
    if experiment.tuner is not None and experiment.tuner.trainable_name:
        return experiment.tuner.trainable_name
    names = Counter(t.trainable_name for t in wanted or experiment.trials if t.trainable_name)
    return names.most_common(1)[0][0] if names else ""


def _wanted(experiment: Experiment, choices: Mapping[str, ResumeType]) -> list[Trial]:
    return [t for t in _in_order(experiment) if choices[t.trial_id] is not ResumeType.SKIP]


def _in_order(experiment: Experiment) -> list[Trial]:
    return sorted(experiment.trials, key=lambda trial: trial.last_result_time, reverse=True)


def _plan_trial(
    trial: Trial,
    choice: ResumeType,
    checkpoint: CheckpointChoice | None,
    new_trial_id: Callable[[str], str],
    *,
    allow_scratch: bool,
) -> TrialPlan:
    name, iteration, repaired, new_id = None, 0, False, None
    if choice is ResumeType.SKIP:
        action, reason = _skip(trial)
    elif trial.unusable:
        action, reason = TrialAction.KEEP, f"{trial.status}, cannot be run: {trial.unusable}"
    elif choice is ResumeType.RESTART:
        action, new_id = TrialAction.RESTART, new_trial_id(trial.trial_id)
        reason = f"{trial.status}: started over as trial {new_id}, old checkpoints are not loaded"
    elif checkpoint is not None and checkpoint.lost and not allow_scratch:
        action = TrialAction.KEEP
        reason = f"{trial.status}, not resumed: {checkpoint.reason}; allow_scratch starts it over"
    else:
        action = TrialAction.RESUME
        if checkpoint is None or checkpoint.name is None:
            why = "no checkpoint" if checkpoint is None else checkpoint.reason
            reason = f"{trial.status}: {why}, started from scratch"
        else:
            name, iteration, repaired = checkpoint.name, checkpoint.iteration, checkpoint.repaired
            reason = f"{trial.status}: {checkpoint.reason}"
    return TrialPlan(
        trial_id=trial.trial_id,
        status=trial.status,
        trial_dir=trial.trial_dir,
        action=action,
        checkpoint=name,
        checkpoint_repaired=repaired,
        iteration=iteration,
        reason=reason,
        resources={} if choice is ResumeType.SKIP or trial.unusable else trial.resources,
        new_trial_id=new_id,
    )


def _refusals(
    experiment: Experiment, trials: tuple[TrialPlan, ...], choices: Mapping[str, ResumeType]
) -> list[str]:
    """Say which trials the flags take up and the plan does not.

    The warnings of the experiment name those of them that cannot be run at all.
    """
    unusable = {trial.trial_id for trial in experiment.trials if trial.unusable}
    return [
        f"trial {trial.trial_id}: {trial.reason}"
        for trial in trials
        if trial.action is TrialAction.KEEP
        and not trial.quarantined
        and trial.trial_id not in unusable
        and choices[trial.trial_id] is not ResumeType.SKIP
    ]


def _ended(trial: Trial) -> bool:
    """Whether the trial came to its end at last, whatever it went through."""
    return trial.status is TrialStatus.TERMINATED


def _quarantined(trial: Trial, why: str, experiment: str) -> TrialPlan:
    reason = (
        f"{trial.status}, quarantined: {why}; `tune-restore release {quote(experiment)} "
        f"{trial.trial_id}` lets it run again"
    )
    return _keep(trial, reason, quarantined=True)


def _foreign_reason(trial: Trial, trainable: str) -> str:
    return (
        f"{trial.status}, not resumed: it was run with the trainable {trial.trainable_name!r}, and this "
        f"restore runs {trainable!r}; once no trial of that is left to run, --ignore-tuner "
        "(ignore_tuner=True) takes this one up"
    )


def _keep(trial: Trial, reason: str, *, quarantined: bool = False) -> TrialPlan:
    """Leave a trial as it is, although the flags take it up."""
    return TrialPlan(
        trial_id=trial.trial_id,
        status=trial.status,
        trial_dir=trial.trial_dir,
        action=TrialAction.KEEP,
        checkpoint=None,
        checkpoint_repaired=False,
        iteration=0,
        reason=reason,
        resources={},
        quarantined=quarantined,
    )


def _skip(trial: Trial) -> tuple[TrialAction, str]:
    if trial.status in UNFINISHED:
        return TrialAction.TERMINATE, f"{trial.status}, not resumed: becomes TERMINATED"
    return TrialAction.KEEP, f"{trial.status}, stays as it is"


def _new_trial_id(restore_id: str, trial_id: str, taken: set[str]) -> str:
    """Make the id of a restarted trial: like Ray's eight hex digits, but the same on every retry."""
    salt = 0
    while True:
        digest = hashlib.sha256(f"{restore_id}/{trial_id}/{salt}".encode()).hexdigest()[:8]
        if digest not in taken:
            return digest
        salt += 1


def _choose_strategy(experiment: Experiment, wish: str) -> tuple[Strategy, str]:
    if wish != "auto" and wish not in set(Strategy):
        raise InvalidInputError(
            f"strategy={wish!r} is not one of 'auto', 'per_trial', 'whole_experiment'."
        )
    coupling = _coupling(experiment)
    fitting = Strategy.WHOLE_EXPERIMENT if coupling else Strategy.PER_TRIAL
    why = coupling or "trials do not depend on each other"
    if wish in ("auto", fitting):
        return fitting, why
    if wish == Strategy.PER_TRIAL:
        return (
            Strategy.PER_TRIAL,
            f"forced, although {coupling}: alone, a trial is not judged by others",
        )
    return Strategy.WHOLE_EXPERIMENT, f"forced, although {why}"


def _coupling(experiment: Experiment) -> str:
    """Say what couples the trials of this experiment; "" if nothing does."""
    tuner = experiment.tuner
    if tuner is None:
        return ""  # the scheduler is lost with tuner.pkl; Ray's default is FIFO
    if tuner.scheduler != DEFAULT_SCHEDULER:
        detail = _LOST_BY_FORCING.get(tuner.scheduler, "it may compare trials with each other")
        return f"trials are coupled by {tuner.scheduler}: {detail}"
    if tuner.wrappers:
        return f"trials are coupled by {' and '.join(tuner.wrappers)} around the searcher"
    return ""
