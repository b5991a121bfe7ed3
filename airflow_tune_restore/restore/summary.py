"""Before and after: what a restore did to each trial of an experiment."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.experiments.experiment import describe_lost_searcher
from airflow_tune_restore.experiments.state import State
from airflow_tune_restore.experiments.trial import Trial, TrialStatus, follow_metric
from airflow_tune_restore.protocol.numbers import strict_json
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import RUN_ACTIONS, RunnerOutcome, TrialAction
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan, describe_quarantine

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["CommitSummary", "TrialChange", "printable", "render", "summarise"]

TABLE_WIDTH = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialChange:
    """One trial before and after.

    Args:
        trial_id: Its id in the state the plan was made from.
        final_trial_id: Its id now; another one after a restart.
        action: What was planned.
        status_before: Stored status before; None if the trial was drawn in this restore.
        status_after: Status in the committed state.
        iteration_before: Iterations it had reported.
        iteration_after: Iterations it has reported.
        metric_before: The experiment's metric then; None if there is none.
        metric_after: The same now.
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
        """Whether it was to be run."""
        return self.action in RUN_ACTIONS or self.action is TrialAction.DRAW


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSummary:
    """What a restore did to an experiment.

    Args:
        experiment: URI of the experiment directory.
        restore_id: The restore.
        state_file: State file it added; None if nothing had changed.
        metric: Name of the metric shown.
        samples_left: Samples still not drawn; None if unknown.
        searcher_lost: As of the plan.
        is_whole_experiment: Whether one run did it all, and so had the samples drawn, too.
        changes: One entry a trial, in the order of the plan; then those that were drawn.
        quarantined: Ids of trials that failed too often in this restore and are not run again.
        broke_off: Why the one run did not come to its end; "" if it did, or if there was none.
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
        """Whether nothing is left: all that was run has finished, and every sample is drawn."""
        return not (self.failed or self.samples_left or self.broke_off)

    @property
    def failed(self) -> tuple[TrialChange, ...]:
        """Trials that were run and are not TERMINATED."""
        return tuple(
            change
            for change in self.changes
            if change.was_run and change.status_after is not TrialStatus.TERMINATED
        )

    def then(self, later: "CommitSummary") -> "CommitSummary":
        """Join what one restore did and what the next did that drew the samples that were left."""
        drawn = tuple(change for change in later.changes if change.status_before is None)
        return replace(
            later,
            state_file=later.state_file or self.state_file,
            changes=(*self.changes, *drawn),
        )

    def table(self, width: int = TABLE_WIDTH) -> str:
        """Render before and after as plain text, for logs and terminals alike."""
        from rich import box  # takes longer to import than a plan takes to make
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

    def describe_changes(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return the changes as plain values of strict JSON; above `most`, those of trials that ran only.

        A metric that is NaN or infinite is the string "nan", "inf" or "-inf".
        """
        changes = self.changes
        if most is not None and len(changes) > most:
            changes = tuple(change for change in changes if change.was_run)[:most]
        return [
            {
                name: strict_json(getattr(value, "value", value))
                for name, value in asdict(change).items()
            }
            for change in changes
        ]

    def headline(self) -> str:
        """Say in one sentence how it went."""
        parts = []
        for what, is_meant in (("resumed trials", False), ("samples drawn now", True)):
            ran = [c for c in self.changes if c.was_run and (c.status_before is None) == is_meant]
            failed = [c.trial_id for c in ran if c in self.failed]
            if ran or not is_meant:
                parts.append(f"{len(ran) - len(failed)} of {len(ran)} {what} finished")
            if failed:
                parts.append(f"{len(failed)} did not ({', '.join(failed[:5])})")
        text = f"{self.experiment}: {', '.join(parts)}"
        if self.quarantined:
            text += f"; {describe_quarantine(self.experiment, list(self.quarantined))}"
        if self.broke_off:
            text += f"; the run broke off: {printable(self.broke_off)}"
        if self.samples_left and self.searcher_lost:
            lost = describe_lost_searcher(self.experiment, self.samples_left, self.searcher_lost)
            text += f"; {lost}"
        elif self.samples_left:
            text += f"; {self.samples_left} samples were never drawn"
        where = f"committed as {self.state_file}" if self.state_file else "nothing had changed"
        return f"{text}; {where}."


def render(table: "Table", width: int) -> str:
    """Return a table as plain text, without the blanks that rich puts around it."""
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
        plan: What was planned.
        state_file: The state file that was added, if any.
        before: The state the plan was made from.
        after: The committed state; rows stand at the same places, those of drawn samples follow.
        outcomes: How the last attempt of each trial ended, by trial id in the plan.
        samples_left: Samples still not drawn; None if unknown.
        quarantined: Final ids of trials that were run and are in quarantine now.
        broke_off: Why the one run did not come to its end, if it did not.
    """
    known = len(before.trials)
    rows = {
        old.trial_id: (old, new)
        for old, new in zip(before.trials, after.trials[:known], strict=True)
    }
    drawn = after.trials[known:]
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
            *(_drawn(plan, trial) for trial in drawn),
        ),
        quarantined=tuple(quarantined),
        broke_off=broke_off,
    )


def _drawn(plan: RestorePlan, trial: Trial) -> TrialChange:
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
        note="a sample that had not been drawn",
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
            ended = "the run broke off" if broke_off else "its runner ended without a word"
            note = ended if after != before else "never got to run"
        elif outcome.error:
            note = f"{outcome.error_type}: {outcome.error}".removeprefix(": ")
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
    except OverflowError:  # JSON knows larger integers than there are floats
        return None


def _arrow(before: object, after: object) -> str:
    return f"{before}" if before == after else f"{before} → {after}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
