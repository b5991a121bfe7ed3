"""Before and after: what a restore did to each trial of an experiment."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.experiments.experiment import describe_lost_searcher
from airflow_tune_restore.experiments.state import State
from airflow_tune_restore.experiments.trial import Trial, TrialStatus, follow_metric
from airflow_tune_restore.protocol.numbers import strict_json
from airflow_tune_restore.protocol.printable import counted, printable
from airflow_tune_restore.protocol.request import RUN_ACTIONS, RunnerOutcome, TrialAction
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan, describe_quarantine

if TYPE_CHECKING:
    from rich.table import Table

TABLE_WIDTH = 160
NO_OUTCOME = "its runner exited without recording an outcome"
_SHOWN_IDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialChange:
    """One trial before and after.

    Args:
        trial_id: Its id in the state that the plan was made from.
        final_trial_id: Its id now; another one after a restart.
        action: What was planned.
        status_before: Recorded status before; None if the search added the trial in this restore.
        status_after: Status in the committed state.
        iteration_before: Iterations it had reported before.
        iteration_after: Iterations it has reported now.
        metric_before: The experiment's metric before; None without one.
        metric_after: The metric now.
        note: Why, or what went wrong.
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

    @property
    def was_run(self) -> bool:
        """Whether a runner was started for it."""
        return self.action in RUN_ACTIONS or self.action is TrialAction.DRAW

    @property
    def has_failed(self) -> bool:
        """Whether it was run and is not TERMINATED."""
        return self.was_run and self.status_after is not TrialStatus.TERMINATED


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSummary:
    """What a restore did to an experiment.

    Args:
        experiment: URI of the experiment directory.
        restore_id: The restore.
        state_file: State file it added; None if nothing had changed.
        metric: Name of the metric shown.
        samples_left: Samples that the searcher has not suggested yet; None if unknown.
        searcher_lost: As in the plan.
        is_whole_experiment: Whether one run ran all trials, and continued the search, too.
        changes: One entry per trial, in the order of the plan; then the trials that the search added.
        quarantined: Ids of trials that failed too often and are not run again.
        broke_off: Why the whole-experiment run did not finish; "" if it did, or if there was none.
    """

    experiment: str
    restore_id: str
    state_file: str | None
    metric: str | None
    samples_left: int | None
    is_whole_experiment: bool
    changes: tuple[TrialChange, ...]
    quarantined: tuple[str, ...] = ()
    searcher_lost: str = ""
    broke_off: str = ""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left: every trial that was run has finished, and every sample is drawn."""
        return not (self.failed or self.samples_left or self.broke_off)

    @property
    def failed(self) -> tuple[TrialChange, ...]:
        """Trials that were run and are not TERMINATED."""
        return tuple(change for change in self.changes if change.has_failed)

    def then(self, later: "CommitSummary") -> "CommitSummary":
        """Join this summary with that of the restore that then continued the search."""
        drawn = tuple(change for change in later.changes if change.status_before is None)
        return replace(
            later,
            state_file=later.state_file or self.state_file,
            changes=(*self.changes, *drawn),
        )

    def table(self, width: int = TABLE_WIDTH) -> str:
        """Render before and after as plain text, for logs and terminals alike."""
        from rich import box  # its import takes longer than a plan
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("trial", "before", "after", "iterations"):
            table.add_column(heading, no_wrap=True)
        if self.metric:
            table.add_column(printable(self.metric), no_wrap=True)
        table.add_column("what happened", overflow="fold")
        for change in self.changes:
            cells = [
                _arrow(change.trial_id, change.final_trial_id),
                change.status_before.value if change.status_before else "-",
                change.status_after.value,
                _arrow(change.iteration_before, change.iteration_after),
            ]
            if self.metric:
                cells.append(_arrow(_number(change.metric_before), _number(change.metric_after)))
            table.add_row(*cells, printable(f"{change.action}: {change.note}"))
        return render(table, width)

    def describe_changes(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the changes as plain values of strict JSON; above `limit`, only trials that were run.

        A metric that is NaN or infinite is the string "nan", "inf" or "-inf".
        """
        changes = self.changes
        if limit is not None and len(changes) > limit:
            changes = tuple(change for change in changes if change.was_run)[:limit]
        return [
            {
                name: strict_json(getattr(value, "value", value))
                for name, value in asdict(change).items()
            }
            for change in changes
        ]

    def headline(self) -> str:
        """Return the result in one sentence."""
        parts = []
        for what, is_new in (("resumed trials", False), ("samples drawn now", True)):
            ran = [c for c in self.changes if c.was_run and (c.status_before is None) == is_new]
            failed = [c.trial_id for c in ran if c.has_failed]
            if ran or not is_new:
                parts.append(f"{len(ran) - len(failed)} of {len(ran)} {what} finished")
            if failed:
                parts.append(f"{len(failed)} did not ({', '.join(failed[:_SHOWN_IDS])})")
        text = f"{self.experiment}: {', '.join(parts)}"
        if self.quarantined:
            text += f"; {describe_quarantine(self.experiment, list(self.quarantined))}"
        if self.broke_off:
            text += f"; the run broke off: {printable(self.broke_off)}"
        if self.samples_left and self.searcher_lost:
            lost = describe_lost_searcher(self.experiment, self.samples_left, self.searcher_lost)
            text += f"; {lost}"
        elif self.samples_left:
            were = "was" if self.samples_left == 1 else "were"
            text += f"; {counted(self.samples_left, 'sample')} {were} never drawn"
        where = f"committed as {self.state_file}" if self.state_file else "nothing had changed"
        return f"{text}; {where}."


def render(table: "Table", width: int) -> str:
    """Return a table as plain text, without the empty lines that rich puts around it."""
    from rich.console import Console

    text = StringIO()
    console = Console(file=text, width=width, markup=False, emoji=False, highlight=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def summarise(
    plan: RestorePlan,
    *,
    state_file: str | None,
    before: State,
    after: State,
    outcomes: dict[str, RunnerOutcome],
    samples_left: int | None,
    quarantined: Sequence[str] = (),
    broke_off: str = "",
) -> CommitSummary:
    """Put the rows before and after side by side, in the order of the plan.

    Args:
        plan: The plan.
        state_file: The state file that was added, if any.
        before: The state that the plan was made from.
        after: The committed state: the same rows in the same order, then those that the search added.
        outcomes: The outcome of the last attempt of each trial, by trial id in the plan.
        samples_left: As in `CommitSummary`.
        quarantined: Final ids of trials that were run and are in quarantine now.
        broke_off: As in `CommitSummary`.
    """
    known = len(before.trials)
    rows = {
        old.trial_id: (old, new)
        for old, new in zip(before.trials, after.trials[:known], strict=True)
    }
    return CommitSummary(
        experiment=plan.experiment,
        restore_id=plan.restore_id,
        state_file=state_file,
        metric=plan.metric,
        samples_left=samples_left,
        searcher_lost=plan.searcher_lost,
        is_whole_experiment=plan.is_whole_experiment,
        changes=(
            *(
                _change(plan, trial, *rows[trial.trial_id], outcomes.get(trial.trial_id), broke_off)
                for trial in plan.trials
            ),
            *(_added(plan, trial) for trial in after.trials[known:]),
        ),
        quarantined=tuple(quarantined),
        broke_off=broke_off,
    )


def _added(plan: RestorePlan, trial: Trial) -> TrialChange:
    return TrialChange(
        trial_id=trial.trial_id,
        final_trial_id=trial.trial_id,
        action=TrialAction.DRAW,
        status_before=None,
        status_after=trial.status,
        iteration_before=0,
        iteration_after=trial.iteration,
        metric_before=None,
        metric_after=_metric(trial, plan.metric),
        note="a sample that the search suggested now",
    )


def _change(
    plan: RestorePlan,
    trial: TrialPlan,
    before: Trial,
    after: Trial,
    outcome: RunnerOutcome | None,
    broke_off: str,
) -> TrialChange:
    note = trial.reason
    if trial.action in RUN_ACTIONS:
        if outcome is None:
            ended = "the run broke off" if broke_off else NO_OUTCOME
            note = ended if after != before else "was not started"
        elif outcome.error:
            note = outcome.describe_error()
    return TrialChange(
        trial_id=trial.trial_id,
        final_trial_id=after.trial_id,
        action=trial.action,
        status_before=before.status,
        status_after=after.status,
        iteration_before=before.iteration,
        iteration_after=after.iteration,
        metric_before=_metric(before, plan.metric),
        metric_after=_metric(after, plan.metric),
        note=printable(note),
    )


def _metric(trial: Trial, name: str | None) -> float | None:
    value = follow_metric(trial.last_result, name) if name else None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # an integer in JSON may be larger than any float
        return None


def _arrow(before: object, after: object) -> str:
    return f"{before}" if before == after else f"{before} → {after}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
