"""Before and after: what a restore did to each trial of an experiment."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from airflow_tune_restore.experiments.experiment import describe_lost_searcher
from airflow_tune_restore.experiments.parameters import Varying, find_varying, read_metric
from airflow_tune_restore.experiments.state import State
from airflow_tune_restore.experiments.trial import UNFINISHED, Trial, TrialStatus
from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.numbers import strict_json
from airflow_tune_restore.protocol.printable import counted, printable, share
from airflow_tune_restore.protocol.request import RUN_ACTIONS, Result, RunnerOutcome, TrialAction
from airflow_tune_restore.restore.columns import Column
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan, describe_quarantine
from airflow_tune_restore.restore.shown_rows import describe_hidden, first_rows
from airflow_tune_restore.restore.trial_table import coloured, render_trials

TABLE_WIDTH = 160
NO_OUTCOME = "its runner exited without recording an outcome"
_SUGGESTED = "a sample that the search suggested now"
_SHOWN_IDS = 5
_SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialChange:
    """One trial before and after.

    Args:
        trial_id: Its id in the state that the plan was made from.
        final_trial_id: Its id now; another one after a restart.
        action: The planned action.
        status_before, status_after: As recorded; None if the search added the trial in this restore.
        iteration_before, iteration_after: How many iterations it has reported.
        metric_before, metric_after: The experiment's metric; None without one.
        note: The reason of the action, or what went wrong.
        parameters: The values of the parameters in which the trials differ, for people.
        is_paused: Whether it goes on in the next restore, because the window of this one had ended.
    """

    trial_id: str
    final_trial_id: str
    action: TrialAction
    status_before: TrialStatus | None
    status_after: TrialStatus
    iteration_before: int
    iteration_after: int
    metric_before: float | None
    metric_after: float | None
    note: str
    parameters: dict[str, str] = field(default_factory=dict)
    is_paused: bool = False

    @property
    def was_run(self) -> bool:
        """Whether it was to be run."""
        return self.action in RUN_ACTIONS or self.action is TrialAction.DRAW

    @property
    def has_failed(self) -> bool:
        """Whether it was run and is neither TERMINATED nor paused."""
        return self.was_run and not (self.has_finished or self.is_paused)

    @property
    def has_finished(self) -> bool:
        """Whether it is TERMINATED."""
        return self.status_after is TrialStatus.TERMINATED

    @property
    def has_advanced(self) -> bool:
        """Whether it was run and got further, and is not TERMINATED."""
        return (
            self.was_run and not self.has_finished and self.iteration_after > self.iteration_before
        )

    @property
    def end(self) -> str:
        """How it ended, in a word that counts many of them."""
        if self.has_failed:
            return "failed"
        if self.is_paused:
            return "paused"
        return "finished" if self.was_run else "not run"

    def describe(self) -> dict[str, Any]:
        """Return it as plain values of strict JSON."""
        values = ((name, getattr(self, name)) for name in _FIELDS)
        return {name: strict_json(getattr(value, "value", value)) for name, value in values}


_FIELDS = tuple(each.name for each in fields(TrialChange))
_ENDS = ("failed", "paused", "finished", "not run")
"""The ends of trials, in the order in which a long table shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSummary:
    """The changes that a restore made to an experiment.

    Args:
        experiment: URI of the experiment directory.
        state_file: State file it added; None if nothing had changed.
        metric: Name of the metric shown.
        samples_left: Samples that the searcher has not suggested yet; None if unknown.
        searcher_lost: As in the plan.
        is_whole_experiment: Whether one run ran all trials, and continued the search, too.
        changes: One entry per trial, in the order of the plan; then the trials that the search added.
        chosen: The only trials that the user chose; empty if all were.
        quarantined: Ids of trials that failed too often and are not run again.
        broke_off: Why the whole-experiment run did not finish; "" if it did, or if there was none.
        more_parameters: How many parameters differ beside those in `changes`.
        waiting: How many trials wait for a later restore, because this one was a part.

    Attributes:
        ran: The changes of trials that were run.
        failed: Those of them that are neither TERMINATED nor paused.
        paused: Those of them that are paused.
    """

    experiment: str
    restore_id: str
    state_file: str | None
    metric: str | None
    samples_left: int | None
    is_whole_experiment: bool
    changes: tuple[TrialChange, ...]
    chosen: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    searcher_lost: str = ""
    broke_off: str = ""
    more_parameters: int = 0
    waiting: int = 0
    ran: tuple[TrialChange, ...] = field(init=False, repr=False, compare=False)
    failed: tuple[TrialChange, ...] = field(init=False, repr=False, compare=False)
    paused: tuple[TrialChange, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # once: there may be thousands of trials, and all that is shown asks for them
        ran = tuple(change for change in self.changes if change.was_run)
        object.__setattr__(self, "ran", ran)
        object.__setattr__(self, "failed", tuple(change for change in ran if change.has_failed))
        object.__setattr__(self, "paused", tuple(change for change in ran if change.is_paused))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left: every trial that was run has finished, and every sample is drawn.

        The samples do not count if the user chose trials.
        """
        has_samples = self.samples_left and not self.chosen
        return not (self.failed or self.paused or has_samples or self.broke_off)

    def then(self, later: "CommitSummary") -> "CommitSummary":
        """Join this summary with that of the restore that then continued the search."""
        drawn = tuple(change for change in later.changes if change.status_before is None)
        return replace(
            later,
            state_file=later.state_file or self.state_file,
            changes=(*self.changes, *drawn),
            quarantined=tuple(dict.fromkeys(self.quarantined + later.quarantined)),
        )

    def table(
        self,
        width: int = TABLE_WIDTH,
        *,
        most: int | None = None,
        hint: str = "",
        in_colour: bool = False,
    ) -> str:
        """Render before and after as text; in colour for a terminal, never for a log.

        With more than `most` trials, it has those that failed first, then those that are paused, then the
        others that ran. A line
        counts the rest, and ends in `hint`.
        """
        changes, hidden = first_rows(self.changes, lambda change: _ENDS.index(change.end), most)
        columns = [
            Column("trial", [_arrow(c.trial_id, c.final_trial_id) for c in changes]),
            Column("before", [coloured(c.status_before or "-") for c in changes]),
            Column("after", [coloured(c.status_after) for c in changes]),
            Column("iterations", [_arrow(c.iteration_before, c.iteration_after) for c in changes]),
        ]
        if self.metric:
            metrics = [(_number(c.metric_before), _number(c.metric_after)) for c in changes]
            columns.append(Column(self.metric, [_arrow(*pair) for pair in metrics]))
        columns.append(Column("what happened", [f"{c.action}: {c.note}" for c in changes]))
        counts = Counter(change.end for change in hidden)
        return render_trials(
            columns,
            [change.parameters for change in changes],
            width,
            more=self.more_parameters,
            hidden=describe_hidden({end: counts[end] for end in _ENDS if counts[end]}, hint),
            in_colour=in_colour,
        )

    def describe_failures(self) -> list[str]:
        """Return a sentence for each trial that did not finish: the error, its place, the iteration."""
        shown = self.failed[:_SHOWN_FAILURES]
        sentences = [f"Trial {change.trial_id} did not finish: {change.note}." for change in shown]
        if len(self.failed) == len(shown):
            return sentences
        more = counted(len(self.failed) - len(shown), "more trial")
        return [*sentences, f"{more} did not finish: the table has the errors."]

    def describe_changes(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the changes as plain values of strict JSON; above `limit`, only trials that were run.

        A metric that is NaN or infinite is the string "nan", "inf" or "-inf".
        """
        changes = self.changes
        if limit is not None and len(changes) > limit:
            changes = self.ran[:limit]
        return [change.describe() for change in changes]

    def headline(self) -> str:
        """Return the result in one sentence."""
        resumed = [change for change in self.ran if change.status_before is not None]
        drawn = [change for change in self.ran if change.status_before is None]
        parts = [
            *_count_ends(resumed, "resumed trial"),
            *_count_ends(drawn, "sample", " drawn now"),
        ]
        text = f"{self.experiment}: {', '.join(parts) or 'no trial was to run'}"
        chosen = set(self.chosen)
        others = sum(change.trial_id not in chosen for change in self.changes) - self.waiting
        if self.waiting:
            text += f"; {describe_waiting(self.waiting)} for a later restore"
        elif chosen and others:
            text += f"; {counted(others, 'trial')} not chosen, left as recorded"
        if self.quarantined:
            text += f"; {describe_quarantine(self.experiment, list(self.quarantined))}"
        if self.broke_off:
            text += f"; the run broke off: {printable(self.broke_off).rstrip('.')}"
        if self.samples_left and self.searcher_lost:
            lost = describe_lost_searcher(self.samples_left, self.searcher_lost)
            text += f"; {lost}"
        elif self.samples_left:
            were = "was" if self.samples_left == 1 else "were"
            text += f"; {counted(self.samples_left, 'sample')} {were} never drawn"
        where = f"committed as {self.state_file}" if self.state_file else "nothing had changed"
        return f"{text}; {where}."


def summarise(
    plan: RestorePlan,
    *,
    state_file: str | None,
    before: State,
    after: State,
    outcomes: dict[str, RunnerOutcome],
    samples_left: int | None,
    quarantined: Sequence[str] = (),
    paused: Collection[str] = (),
) -> CommitSummary:
    """Put the rows before and after side by side, in the order of the plan.

    `after` has the same rows as `before` in the same order, then those that the search added. `outcomes`
    are those of the last attempts, by trial id in the plan, and that of the whole-experiment run. Of
    these trials, and of this run, `paused` has those that the end of the window has paused. The rest is
    as in `CommitSummary`.
    """
    broke_off = _why_it_broke_off(plan, outcomes, paused)
    known, varying = len(before.trials), find_varying(after.trials)
    pairs = zip(before.trials, after.trials[:known], strict=True)
    rows = {old.trial_id: (old, new) for old, new in pairs}

    def change(trial: TrialPlan) -> TrialChange:
        old, new = rows[trial.trial_id]
        outcome = outcomes.get(trial.trial_id)
        is_paused = trial.trial_id in paused
        note = (
            f"the window ended at {window.describe_end(plan.pause_at)}"
            if is_paused
            else _note(trial, outcome, has_changed=new != old, broke_off=broke_off)
        )
        made = _change(trial.action, note, old, new, plan.metric, varying)
        return replace(made, is_paused=is_paused)

    def drawn(trial: Trial) -> TrialChange:
        made = _change(TrialAction.DRAW, _SUGGESTED, None, trial, plan.metric, varying)
        is_paused = layout.WHOLE_EXPERIMENT in paused and trial.status in UNFINISHED
        return replace(made, is_paused=is_paused)

    return CommitSummary(
        experiment=plan.experiment,
        restore_id=plan.restore_id,
        state_file=state_file,
        metric=plan.metric,
        samples_left=samples_left,
        searcher_lost=plan.searcher_lost,
        is_whole_experiment=plan.is_whole_experiment,
        changes=(
            *map(change, plan.trials),
            *map(drawn, after.trials[known:]),
        ),
        quarantined=tuple(quarantined),
        broke_off=broke_off,
        chosen=plan.choices.trials,
        waiting=plan.waiting,
        more_parameters=varying.more,
    )


def describe_waiting(trials: int) -> str:
    """Return "1 trial waits" or "2 trials wait"."""
    return f"{counted(trials, 'trial')} {'waits' if trials == 1 else 'wait'}"


def _change(
    action: TrialAction,
    note: str,
    before: Trial | None,
    after: Trial,
    metric: str | None,
    varying: Varying,
) -> TrialChange:
    return TrialChange(
        trial_id=(before or after).trial_id,
        final_trial_id=after.trial_id,
        action=action,
        status_before=before.status if before else None,
        status_after=after.status,
        iteration_before=before.iteration if before else 0,
        iteration_after=after.iteration,
        metric_before=_metric(before, metric),
        metric_after=_metric(after, metric),
        note=printable(note),
        parameters=varying.by_trial.get(after.trial_id, {}),
    )


def _why_it_broke_off(
    plan: RestorePlan, outcomes: dict[str, RunnerOutcome], paused: Collection[str]
) -> str:
    """Return why the whole-experiment run did not finish; "" if it did or is paused, or without one."""
    if layout.WHOLE_EXPERIMENT not in plan.units or layout.WHOLE_EXPERIMENT in paused:
        return ""
    outcome = outcomes.get(layout.WHOLE_EXPERIMENT)
    if outcome is None:
        return NO_OUTCOME
    return "" if outcome.result == Result.FINISHED else outcome.describe_error()


def _count_ends(ran: Sequence[TrialChange], what: str, suffix: str = "") -> Iterator[str]:
    """Yield how many of these trials finished, are paused, and failed."""
    if not ran:
        return
    failed = [change.trial_id for change in ran if change.has_failed]
    paused = sum(change.is_paused for change in ran)
    yield f"{share(len(ran) - len(failed) - paused, len(ran), what)}{suffix} finished"
    if paused:
        yield f"{paused} paused until the next restore"
    if failed:
        yield f"{len(failed)} did not ({', '.join(failed[:_SHOWN_IDS])})"


def _note(
    trial: TrialPlan, outcome: RunnerOutcome | None, *, has_changed: bool, broke_off: str
) -> str:
    if trial.action not in RUN_ACTIONS:
        return trial.reason
    if outcome is not None:
        return _describe_end(outcome) if outcome.error else trial.reason
    if not has_changed:
        return "was not started"
    return "the run broke off" if broke_off else NO_OUTCOME


def _describe_end(outcome: RunnerOutcome) -> str:
    """Return the error of an attempt; for one that failed, with its place and iteration."""
    error = outcome.describe_error().rstrip(".")
    if outcome.result != Result.FAILED:
        return error
    place = f", at {outcome.place}" if outcome.place else ""
    return f"{error}{place}, after iteration {outcome.iteration}"


def _metric(trial: Trial | None, name: str | None) -> float | None:
    if trial is None or trial.row is None:
        return trial.metric if trial is not None else None
    return read_metric(trial.row, name)


def _arrow(before: object, after: object) -> str:
    return f"{before}" if before == after else f"{before} → {after}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
