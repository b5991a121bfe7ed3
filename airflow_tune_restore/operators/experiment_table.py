"""The last table of a recovery: every experiment that was found, and what became of it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.hooks.xcom_size import first_fitting
from airflow_tune_restore.operators.totals import (
    TRIALS_FAILED,
    TRIALS_PAUSED,
    UNREADABLE,
    WORDS,
    Totals,
    name_outcomes,
)
from airflow_tune_restore.operators.xcom import Outcome, OutcomeXCom
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable, shortened
from airflow_tune_restore.restore.columns import render
from airflow_tune_restore.restore.shown_rows import MAX_ROWS, describe_hidden
from airflow_tune_restore.restore.summary import TABLE_WIDTH, CommitSummary

MAX_EXPERIMENTS = 1000
"""With more experiments, the XCom leaves out the last ones."""

SHORT_REASON = 80
"""Characters of a reason in the XCom, if the lines of all experiments do not fit with whole ones."""

_WHOLE_ADDRESS = TABLE_WIDTH // 2
"""Characters of an address that are not broken over two lines, so that it can be copied."""

_REASONS_LENGTH = 60_000
"""Characters of all reasons in the table together: then it has at most a thousand lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentLine:
    """One experiment, and what became of it.

    Args:
        experiment: Its address.
        outcome: One of `Outcome`, or of the other words in `operators.totals`.
        trials_run: Trials that were resumed, restarted or drawn.
        trials_finished: How many of them are TERMINATED now.
        trials_advanced: How many of the others got further.
        trials_paused: How many of the others are paused.
        by_name: As in `OutcomeXCom`.
        waiting_trials: Trials that wait for a later DAG run.
        reason: Why it was not restored, or what was done.
    """

    experiment: str
    outcome: str
    trials_run: int = 0
    trials_finished: int = 0
    trials_advanced: int = 0
    by_name: bool = False
    waiting_trials: int = 0
    reason: str = ""
    trials_paused: int = 0

    @classmethod
    def of_plan(cls, item: OutcomeXCom) -> Self:
        """Describe an experiment for which nothing is to commit."""
        return cls(
            experiment=item.experiment,
            outcome=str(item.outcome),
            by_name=item.by_name,
            waiting_trials=item.waiting,
            reason=printable(item.reason, NOTE_LENGTH),
        )

    @classmethod
    def of_commit(cls, item: OutcomeXCom, summary: CommitSummary) -> Self:
        """Describe an experiment that was committed."""
        return cls(
            experiment=item.experiment,
            outcome=_outcome_of(summary) or str(item.outcome),
            trials_run=len(summary.ran),
            trials_finished=len(summary.ran) - len(summary.failed) - len(summary.paused),
            trials_advanced=sum(change.has_advanced for change in summary.ran),
            trials_paused=len(summary.paused),
            by_name=item.by_name,
            waiting_trials=item.waiting,
            reason=summary.headline().removeprefix(f"{summary.experiment}: "),
        )


def _outcome_of(summary: CommitSummary) -> str:
    """Return the outcome of a restore with trials that did not finish; "" if all did."""
    if summary.failed:
        return TRIALS_FAILED
    return TRIALS_PAUSED if summary.paused else ""


@dataclass(frozen=True, slots=True)
class ExperimentTable:
    """The lines of all experiments, those that a person must look at first.

    Args:
        lines: The lines.
        not_listed: How many more there are for which the XComs had no room, by outcome.
        unlisted_trials: Trials of these that wait for a later DAG run.
    """

    lines: tuple[ExperimentLine, ...]
    not_listed: Counter[str] = field(default_factory=Counter)
    unlisted_trials: int = 0

    @classmethod
    def build(
        cls,
        lines: Iterable[ExperimentLine],
        left_alone: Mapping[str, Any],
        not_listed: Mapping[str, int],
        unlisted_trials: int = 0,
    ) -> Self:
        """Put the lines in order, and add those that the sensor left alone.

        `not_listed` counts experiments that the plan did not list, by outcome, and `unlisted_trials`
        those of their trials that wait.
        """
        known = {line.experiment: line for line in lines}
        for item in left_alone.get("experiments", ()):
            address = printable(str(item.get("experiment")))
            health, reason = item.get("health"), item.get("reason")
            line = ExperimentLine(
                experiment=address,
                outcome=UNREADABLE if health == Health.UNREADABLE else Outcome.LEFT_ALONE,
                reason=printable(f"{health}: {reason}", NOTE_LENGTH),
            )
            known.setdefault(address, line)
        order = {word: number for number, word in enumerate(WORDS)}
        ordered = sorted(known.values(), key=lambda line: (order[line.outcome], line.experiment))
        by_sensor = Counter({str(Outcome.LEFT_ALONE): int(left_alone.get("not_listed") or 0)})
        return cls(tuple(ordered), by_sensor + Counter(not_listed), unlisted_trials)

    def totals(self) -> Totals:
        """Return the numbers of all experiments and trials."""
        counts = Counter(str(line.outcome) for line in self.lines) + self.not_listed
        parts = sum(
            1 for line in self.lines if line.waiting_trials and line.outcome != Outcome.WAITING
        )
        return Totals(
            experiments=dict(counts),
            trials_run=sum(line.trials_run for line in self.lines),
            trials_finished=sum(line.trials_finished for line in self.lines),
            trials_advanced=sum(line.trials_advanced for line in self.lines),
            trials_paused=sum(line.trials_paused for line in self.lines),
            waiting_experiments=counts[Outcome.WAITING] + parts,
            waiting_trials=sum(line.waiting_trials for line in self.lines) + self.unlisted_trials,
        )

    def to_xcom(self) -> list[dict[str, Any]]:
        """Return the XCom form: strict JSON, as many of the first lines as fit."""
        lines = self.lines[:MAX_EXPERIMENTS]
        whole = first_fitting(map(_describe, lines))
        if len(whole) == len(lines):
            return whole
        short = (replace(line, reason=shortened(line.reason, SHORT_REASON)) for line in lines)
        return first_fitting(map(_describe, short))

    def headline(self) -> str:
        """Return how many experiments had which outcome, and what waits."""
        return self.totals().describe()

    def render(self) -> str:
        """Return the table of the first experiments as plain text, and the number of the others."""
        from rich import box  # its import takes longer than a plan
        from rich.table import Table

        shown = self.lines[:MAX_ROWS]
        most = _REASONS_LENGTH // max(len(shown), 1)
        # a fixed width: of columns that rich narrows below their `min_width`, it cuts the last one off
        longest = max((len(line.experiment) for line in shown), default=0)
        width = min(max(longest, len("experiment")), _WHOLE_ADDRESS)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("experiment", overflow="fold", width=width)
        table.add_column("outcome", no_wrap=True)
        table.add_column("trials", no_wrap=True)
        table.add_column("what happened", overflow="fold")
        for line in shown:
            trials = f"{line.trials_finished} of {line.trials_run} finished"
            by_name = "taken by the name of its trainable alone; " if line.by_name else ""
            table.add_row(
                printable(line.experiment),
                WORDS[line.outcome],
                trials if line.trials_run else "-",
                f"{by_name}{shortened(line.reason, most)}",
            )
        hidden = Counter(line.outcome for line in self.lines[MAX_ROWS:]) + self.not_listed
        where = "The lines above, and the logs of find and plan, have more of them."
        return f"{render(table, TABLE_WIDTH)}{describe_hidden(name_outcomes(hidden), where)}"


def _describe(line: ExperimentLine) -> dict[str, Any]:
    return {**asdict(line), "outcome": str(line.outcome)}
