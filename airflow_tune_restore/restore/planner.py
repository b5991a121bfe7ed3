"""Experiment + choices -> plan. Pure, and the same answers as Ray's TuneController.

Mirrors `TuneController._requeue_restored_trials` (ray.tune.execution.tune_controller, 2.60): trials are
in the order of `last_result_time`, newest first; a skipped unfinished trial becomes TERMINATED, a skipped
ERROR stays ERROR. Where Ray leaves a case to chance (a checkpoint that is gone), it is decided here, with
a reason.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import msgspec

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.ends import is_budget_spent
from airflow_tune_restore.experiments.experiment import (
    DEFAULT_SCHEDULER,
    Experiment,
    describe_lost_searcher,
)
from airflow_tune_restore.experiments.parameters import Varying, find_varying
from airflow_tune_restore.experiments.trial import UNFINISHED, Trial, TrialStatus
from airflow_tune_restore.protocol.checkpoints import CheckpointChoice
from airflow_tune_restore.protocol.request import RUN_ACTIONS, TrialAction
from airflow_tune_restore.restore.choices import AUTO, PlanChoices, Strategy
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.plan import (
    NOT_CHOSEN,
    RestorePlan,
    RunOption,
    TrialPlan,
    describe_quarantine,
    release_command,
)

_WHY_COUPLED = {
    "HyperBandScheduler": "its brackets compare trials with each other",
    "HyperBandForBOHB": "its brackets compare trials with each other",
    "AsyncHyperBandScheduler": "its rungs compare trials with each other",
    "ASHAScheduler": "its rungs compare trials with each other",
    "MedianStoppingRule": "it compares each trial with the median of the others",
    "PopulationBasedTraining": "it copies good trials over bad ones",
    "PB2": "it copies good trials over bad ones",
}

_OWN_SEARCHER = (
    "search_alg is not used: the experiment's own searcher is not lost, and continues the search"
)
_SPENT_BUDGET = (
    "time_budget_s of the experiment is spent: a resumed trial ends at once, as with Tuner.restore"
)


def choices_for(experiment: Experiment, choices: PlanChoices) -> dict[str, ResumeType]:
    """Return what the flags choose for each of the chosen trials, by trial id."""
    cut_short = {trial.trial_id for trial in experiment.stopped_by_fail_fast}
    named = frozenset(choices.trials)
    return {
        trial.trial_id: choices.flags.choice_for(
            trial.status, is_cut_short=trial.trial_id in cut_short
        )
        for trial in experiment.trials
        if not named or trial.trial_id in named
    }


def build_plan(
    experiment: Experiment,
    choices: PlanChoices,
    *,
    restore_id: str,
    checkpoints: Mapping[str, CheckpointChoice],
    can_search: bool = False,
    quarantined: Mapping[str, str] | None = None,
) -> RestorePlan:
    """Decide what happens to each trial.

    By trial id, `checkpoints` holds the checkpoint that a trial to resume can start from, and
    `quarantined` why a trial is in quarantine and stays as it is. `can_search` is whether the user named
    a searcher, for samples whose own searcher is lost.

    Raises:
        InvalidInputError: If a chosen trial does not exist, or cannot be restored without the others.
    """
    experiment.check_has(choices.trials)
    strategy, reason = _choose_strategy(experiment, choices)
    in_order = _in_order(experiment)
    taken = {trial.trial_id for trial in in_order}
    chosen = choices_for(experiment, choices)
    wanted = _wanted(in_order, chosen)
    reasons = _quarantine_reasons(in_order, chosen, quarantined or {})
    trainable = _trainable_name(experiment, wanted)
    cut_short = {trial.trial_id for trial in experiment.stopped_by_fail_fast}
    kept = {
        **{t.trial_id: f"{t.status}, {NOT_CHOSEN}" for t in in_order if t.trial_id not in chosen},
        **{
            t.trial_id: _foreign_reason(t, trainable)
            for t in wanted
            if t.trainable_name not in ("", trainable)
        },
    }
    trials = tuple(
        _quarantined(trial, reasons[trial.trial_id], experiment.uri)
        if trial.trial_id in reasons
        else _entry(trial, TrialAction.KEEP, kept[trial.trial_id])
        if trial.trial_id in kept
        else _plan_trial(
            trial,
            chosen[trial.trial_id],
            checkpoints.get(trial.trial_id),
            lambda trial_id: _new_trial_id(restore_id, trial_id, taken),
            allow_scratch=choices.allow_scratch,
            is_cut_short=trial.trial_id in cut_short,
            is_named=bool(choices.trials),
            is_quarantined=trial.trial_id in (quarantined or {}),
        )
        for trial in in_order
    )
    varying = find_varying(experiment.trials)
    tuner = experiment.tuner
    left = experiment.samples_left
    lost = "" if can_search else experiment.searcher_lost
    runs = any(trial.action in RUN_ACTIONS for trial in trials)
    return RestorePlan(
        restore_id=restore_id,
        experiment=experiment.uri,
        base=experiment.state_file,
        trainable_name=trainable,
        choices=choices,
        strategy=strategy,
        strategy_reason=reason,
        ignore_tuner=experiment.ignores_tuner,
        samples_left=left,
        # one real run gets the samples that are left, as Tuner.restore does; a single trial cannot
        continues_search=strategy is Strategy.WHOLE_EXPERIMENT and left != 0 and not lost,
        searcher_lost=lost,
        metric=tuner.metric if tuner else None,
        mode=tuner.mode if tuner else None,
        trials=_with_parameters(trials, varying),
        more_parameters=varying.more,
        warnings=(
            *experiment.warnings,
            *([describe_quarantine(experiment.uri, list(reasons))] if reasons else ()),
            *_refusals(experiment, trials, {trial.trial_id for trial in wanted}),
            *([describe_lost_searcher(left, lost)] if lost else ()),
            *([_OWN_SEARCHER] if can_search and not experiment.searcher_lost else ()),
            *([_SPENT_BUDGET] if runs and is_budget_spent(experiment.state) else ()),
        ),
    )


def build_search_plan(
    experiment: Experiment, choices: PlanChoices, *, restore_id: str, can_search: bool = False
) -> RestorePlan:
    """Plan to continue the search, and nothing else: every recorded trial stays as it is.

    The flags and the chosen trials of `choices` are not used.

    Raises:
        InvalidInputError: If the searcher is lost.
    """
    plan = build_plan(
        experiment,
        replace(choices, flags=ResumeFlags(unfinished=ResumeType.SKIP), trials=()),
        restore_id=restore_id,
        checkpoints={},
        can_search=can_search,
    )
    if plan.searcher_lost:
        lost = describe_lost_searcher(plan.samples_left, plan.searcher_lost)
        raise InvalidInputError(f"{experiment.uri}: {lost}. No run was started.")
    kept = tuple(
        msgspec.structs.replace(
            trial,
            action=TrialAction.KEEP,
            reason=f"{trial.status}, stays as it is",
            runs_with=None,
        )
        for trial in plan.trials
    )
    return replace(
        plan,
        trials=kept,
        strategy=Strategy.WHOLE_EXPERIMENT,
        strategy_reason="the original searcher suggests the samples that are left",
        continues_search=True,
    )


def find_trainable_name(experiment: Experiment, choices: PlanChoices) -> str:
    """Return the name of the trainable that a plan with these choices restores; "" if it is unknown."""
    wanted = _wanted(_in_order(experiment), choices_for(experiment, choices))
    return _trainable_name(experiment, wanted)


def _in_order(experiment: Experiment) -> list[Trial]:
    return sorted(experiment.trials, key=lambda trial: trial.last_result_time, reverse=True)


def _wanted(trials: list[Trial], chosen: Mapping[str, ResumeType]) -> list[Trial]:
    skip = ResumeType.SKIP
    return [trial for trial in trials if chosen.get(trial.trial_id, skip) is not skip]


def _trainable_name(experiment: Experiment, wanted: list[Trial]) -> str:
    """Return the name of the trainable to restore: the one in `tuner.pkl`, which Ray demands.

    Without it, the name that most trials to run have. A later restore then runs those of the other.
    """
    if experiment.tuner is not None and experiment.tuner.trainable_name:
        return experiment.tuner.trainable_name
    names = Counter(t.trainable_name for t in wanted or experiment.trials if t.trainable_name)
    return names.most_common(1)[0][0] if names else ""


def _plan_trial(
    trial: Trial,
    choice: ResumeType,
    checkpoint: CheckpointChoice | None,
    new_trial_id: Callable[[str], str],
    *,
    allow_scratch: bool,
    is_cut_short: bool,
    is_named: bool,
    is_quarantined: bool,
) -> TrialPlan:
    status = trial.status
    if choice is ResumeType.SKIP:
        option = None
        if not trial.unusable and not is_quarantined:
            option = _option_to_run(status, is_cut_short=is_cut_short, is_named=is_named)
        if status in UNFINISHED:
            reason = f"{status}, not resumed: becomes TERMINATED"
            return _entry(trial, TrialAction.TERMINATE, reason, runs_with=option)
        return _entry(trial, TrialAction.KEEP, f"{status}, stays as it is", runs_with=option)
    if trial.unusable:
        return _entry(trial, TrialAction.KEEP, f"{status}, cannot be run: {trial.unusable}")
    if choice is ResumeType.RESTART:
        new_id = new_trial_id(trial.trial_id)
        reason = f"{status}: started over as a new trial, old checkpoints are not loaded"
        return _entry(
            trial, TrialAction.RESTART, reason, resources=trial.resources, new_trial_id=new_id
        )
    why = "no checkpoint" if checkpoint is None else checkpoint.reason
    if checkpoint is not None and checkpoint.lost and not allow_scratch:
        reason = f"{status}, not resumed: {why}; allow_scratch starts it over"
        option = RunOption.ALLOW_SCRATCH
        return _entry(trial, TrialAction.KEEP, reason, resources=trial.resources, runs_with=option)
    start: dict[str, Any] = {}
    if checkpoint is not None and checkpoint.name is not None:
        start = {"checkpoint": checkpoint.name, "iteration": checkpoint.iteration}
    reason = f"{status}: {why}" if start else f"{status}: {why}, started from scratch"
    return _entry(trial, TrialAction.RESUME, reason, resources=trial.resources, **start)


def _option_to_run(status: TrialStatus, *, is_cut_short: bool, is_named: bool) -> RunOption | None:
    """Return the option that would run a trial; a finished trial stays finished unless it is named."""
    if status in UNFINISHED:
        return RunOption.RESUME_UNFINISHED
    if status is TrialStatus.ERROR:
        return RunOption.RESUME_ERRORED
    if is_cut_short:
        return RunOption.RESUME_CUT_SHORT
    return RunOption.FINISHED if is_named else None


def _refusals(
    experiment: Experiment, trials: tuple[TrialPlan, ...], wanted: Collection[str]
) -> list[str]:
    """Name the trials that the flags choose and the plan keeps.

    The warnings of the experiment name those that cannot be run at all.
    """
    unusable = {trial.trial_id for trial in experiment.trials if trial.unusable}
    return [
        f"trial {trial.trial_id}: {trial.reason}"
        for trial in trials
        if trial.action is TrialAction.KEEP
        and not trial.quarantined
        and trial.trial_id not in unusable
        and trial.trial_id in wanted
    ]


def _quarantine_reasons(
    trials: list[Trial], chosen: Mapping[str, ResumeType], quarantined: Mapping[str, str]
) -> dict[str, str]:
    """Return why chosen trials that would run, or that stay as they are, are in quarantine.

    A finished trial is not one of them; nor is an unfinished one that the flags make TERMINATED.
    """

    def ends(trial: Trial) -> bool:
        is_skipped = chosen[trial.trial_id] is ResumeType.SKIP
        return trial.status is TrialStatus.TERMINATED or (trial.status in UNFINISHED and is_skipped)

    kept = [trial for trial in trials if trial.trial_id in chosen and not ends(trial)]
    return {t.trial_id: quarantined[t.trial_id] for t in kept if t.trial_id in quarantined}


def _quarantined(trial: Trial, why: str, experiment: str) -> TrialPlan:
    command = release_command(experiment, trial.trial_id)
    reason = f"{trial.status}, quarantined: {why}; {command} lets it run again"
    return _entry(trial, TrialAction.KEEP, reason, quarantined=True)


def _foreign_reason(trial: Trial, trainable: str) -> str:
    return (
        f"{trial.status}, not resumed: it was run with the trainable {trial.trainable_name!r}, and this "
        f"restore runs {trainable!r}; when no trial of {trainable!r} is left to run, --ignore-tuner "
        "(ignore_tuner=True) resumes this one"
    )


def _entry(trial: Trial, action: TrialAction, reason: str, **more: Any) -> TrialPlan:
    """Return an entry; without `more` it loads no checkpoint and requests no resources."""
    fields = {"checkpoint": None, "iteration": 0, "resources": {}, **more}
    return TrialPlan(
        trial_id=trial.trial_id,
        status=trial.status,
        trial_dir=trial.trial_dir,
        action=action,
        reason=reason,
        **fields,
    )


def _with_parameters(trials: tuple[TrialPlan, ...], varying: Varying) -> tuple[TrialPlan, ...]:
    """Add them to entries that nobody else has seen; they are as short as an entry has them."""
    for trial in trials:
        if values := varying.by_trial.get(trial.trial_id):
            msgspec.structs.force_setattr(trial, "parameters", values)
    return trials


def _new_trial_id(restore_id: str, trial_id: str, taken: set[str]) -> str:
    """Make the id of a restarted trial: like Ray's eight hex digits, but the same on every retry."""
    texts = (f"{restore_id}/{trial_id}/{salt}" for salt in count())
    digests = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in texts)
    return next(digest for digest in digests if digest not in taken)


def _choose_strategy(experiment: Experiment, choices: PlanChoices) -> tuple[Strategy, str]:
    wish, coupling = choices.strategy, _coupling(experiment)
    fitting = Strategy.WHOLE_EXPERIMENT if coupling else Strategy.PER_TRIAL
    why = coupling or "trials do not depend on each other"
    if choices.trials and (cause := why_one_run(experiment, choices)):
        raise InvalidInputError(
            f"{experiment.uri} is restored in one run of all its trials ({cause}), so a restore of only "
            "some of them (trials, --trial) is refused; strategy='per_trial' (--strategy per_trial) "
            "restores them without the others."
        )
    if wish == Strategy.SHARED_DRIVER and coupling:
        raise InvalidInputError(
            f"{experiment.uri} cannot be restored with strategy='shared_driver' (--strategy "
            f"shared_driver): {coupling}, and trials that share a driver are not compared. Use "
            "strategy='whole_experiment' or 'per_trial'."
        )
    if wish in (AUTO, Strategy.SHARED_DRIVER, fitting):
        return fitting, why  # `restore.sharing` decides which independent trials share a driver
    if wish == Strategy.PER_TRIAL:
        why = f"{coupling}: alone, a trial is not compared with the others"
    return Strategy(wish), f"forced, although {why}"


def why_one_run(experiment: Experiment, choices: PlanChoices) -> str:
    """Return why one run restores all trials of an experiment; "" if each has a run of its own."""
    coupling = _coupling(experiment)
    if choices.strategy == Strategy.WHOLE_EXPERIMENT:
        return coupling or "strategy='whole_experiment' is set"
    return coupling if choices.strategy == AUTO else ""


def _coupling(experiment: Experiment) -> str:
    """Return what couples the trials of this experiment; "" if nothing does."""
    tuner = experiment.tuner
    if tuner is None:
        return ""  # the scheduler is lost with tuner.pkl; Ray's default is FIFO
    if tuner.scheduler != DEFAULT_SCHEDULER:
        detail = _WHY_COUPLED.get(tuner.scheduler, "it may compare trials with each other")
        return f"trials are coupled by {tuner.scheduler}: {detail}"
    if tuner.wrappers:
        return f"trials are coupled by {' and '.join(tuner.wrappers)} around the searcher"
    return ""
