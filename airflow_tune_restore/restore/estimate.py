"""How far the trials of a plan run, and how many GPU- and CPU-hours that takes. Pure, and never certain.

Ray records how long each trial took, and not how far it goes. So the end is the trial's own stopping
criterion, else the largest iteration of the trials that finished. What is unknown stays unknown, and a
sum that lacks it is a least amount.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.trial import Trial, TrialStatus
from airflow_tune_restore.protocol.numbers import MAX_COUNT, is_amount
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How far and how fast the trials of an experiment run, as its state shows it.

    Args:
        ends: The iteration at which a trial to run stops by its own criterion, by trial id.
        seconds: Seconds per iteration of a trial to run, by trial id.
        usual_end: The largest iteration of the trials that finished; None if none did.
        usual_seconds: The median of the seconds per iteration of all trials; None if none reported.
        sample_end: The iteration at which the criterion of all trials stops a new sample, if they share
            one.
        sample_resources: What a new sample requests; empty if unknown.
    """

    ends: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    usual_end: int | None = None
    usual_seconds: float | None = None
    sample_end: int | None = None
    sample_resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """GPU- and CPU-hours, and the number of trials that they lack because too little is known of them."""

    gpu: float = 0.0
    cpu: float = 0.0
    unknown: int = 0

    def __add__(self, other: "Hours") -> "Hours":
        """Return the sum of both."""
        gpu, cpu = self.gpu + other.gpu, self.cpu + other.cpu
        return Hours(gpu=gpu, cpu=cpu, unknown=self.unknown + other.unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """The rest of the run of a trial, or of all samples together.

    Args:
        start: The iteration they start after.
        end: The iteration they stop at; None if unknown.
        hours: For how long, as far as it is known.
    """

    start: int
    end: int | None
    hours: Hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """All that a restore still needs.

    Args:
        trials: By trial id, in the order of the plan.
        samples: The samples that are drawn; None if none are.
        sample_count: How many; None if that is unknown.
    """

    trials: Mapping[str, Effort]
    samples: Effort | None = None
    sample_count: int | None = None

    @property
    def hours(self) -> Hours:
        """All hours together."""
        efforts = [*self.trials.values(), *([self.samples] if self.samples else [])]
        return total(effort.hours for effort in efforts)


def total(hours: Iterable[Hours]) -> Hours:
    """Add them up."""
    return sum(hours, Hours())


def read_course(experiment: Experiment, plan: RestorePlan) -> Course:
    """Read how far and how fast the trials run. Only rows of trials to run are read again."""
    to_run = {trial.trial_id for trial in plan.to_run}
    ends: dict[str, int] = {}
    seconds: dict[str, float] = {}
    paces: list[float] = []
    resources: Mapping[str, float] = {}
    for trial in experiment.trials:
        pace = _pace(trial)
        if pace is not None:
            paces.append(pace)
        if trial.row is None or trial.unusable:
            continue
        resources = resources or trial.resources
        end = end_by_criterion(trial.row.stopping_criterion())
        if end is not None:
            ends[trial.trial_id] = end
        if trial.trial_id in to_run and pace is not None:
            seconds[trial.trial_id] = pace
    finished = [
        trial.iteration
        for trial in experiment.trials
        if trial.status is TrialStatus.TERMINATED and trial.iteration
    ]
    known = set(ends.values())
    return Course(
        ends={trial_id: end for trial_id, end in ends.items() if trial_id in to_run},
        seconds=seconds,
        usual_end=max(finished, default=None),
        usual_seconds=median(paces) if paces else None,
        sample_end=known.pop() if len(known) == 1 else None,
        sample_resources=resources,
    )


def estimate(plan: RestorePlan, course: Course, *, samples: int | None = 0) -> Estimate:
    """Return what the trials of a plan and its samples still need; `samples=None`: an unknown number."""
    trials = {trial.trial_id: _effort(trial, course) for trial in plan.to_run}
    if samples == 0:
        return Estimate(trials=trials)
    end = course.usual_end if course.sample_end is None else course.sample_end
    one = _hours(0, end, course.usual_seconds, course.sample_resources)
    if samples is None or one.unknown:
        hours = Hours(unknown=samples or 1)
    else:
        hours = _finite(Hours(gpu=one.gpu * samples, cpu=one.cpu * samples), samples)
    return Estimate(
        trials=trials, samples=Effort(start=0, end=end, hours=hours), sample_count=samples
    )


def _effort(trial: TrialPlan, course: Course) -> Effort:
    end = course.ends.get(trial.trial_id)
    if end is None and course.usual_end is not None and course.usual_end > trial.iteration:
        end = (
            course.usual_end
        )  # one that went further than all that finished stops nobody knows where
    seconds = course.seconds.get(trial.trial_id, course.usual_seconds)
    hours = _hours(trial.iteration, end, seconds, trial.resources)
    return Effort(start=trial.iteration, end=end, hours=hours)


def _hours(
    start: int, end: int | None, seconds: float | None, resources: Mapping[str, float]
) -> Hours:
    if end is None or not resources or (seconds is None and end > start):
        return Hours(unknown=1)
    hours = max(end - start, 0) * (seconds or 0.0) / _SECONDS_PER_HOUR
    gpu, cpu = (hours * resources.get(name, 0.0) for name in ("GPU", "CPU"))
    return _finite(Hours(gpu=gpu, cpu=cpu), 1)


def _finite(hours: Hours, trials: int) -> Hours:
    """Return hours that can be added up: a damaged state may name any number."""
    is_credible = 0 <= hours.gpu <= MAX_COUNT and 0 <= hours.cpu <= MAX_COUNT
    return hours if is_credible else Hours(unknown=trials)


def _pace(trial: Trial) -> float | None:
    """Return the seconds per iteration of a trial: its mean if its row was kept, else its last one."""
    if trial.row is not None and not trial.unusable and trial.iteration:
        spent = trial.row.last_result().get("time_total_s")
        if is_amount(spent) and spent > 0:
            return float(spent) / trial.iteration
    return trial.last_interval or None


def end_by_criterion(criterion: Any) -> int | None:
    """Return the iteration at which a `stop` of Tune ends a trial (Trial.should_stop, 2.60)."""
    limit = criterion.get("training_iteration") if isinstance(criterion, dict) else None
    return math.ceil(limit) if is_amount(limit) and limit <= MAX_COUNT else None
