"""The last table of a recovery: every experiment that was found, and what became of it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.operators.xcom import Outcome, OutcomeXCom
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, printable
from airflow_tune_restore.restore.columns import render
from airflow_tune_restore.restore.summary import TABLE_WIDTH, CommitSummary

COMMIT_FAILED = "commit_failed"
"""The outcome of an experiment whose restore was started, but could not be committed."""

TRIALS_FAILED = "trials_failed"
"""The outcome of a restored experiment if a trial that ran has not finished."""

UNREADABLE = "unreadable"
"""The outcome of an experiment that the sensor could not read. No task fails because of it."""

MAX_EXPERIMENTS = 1000
"""With more experiments, the XCom leaves out the last ones of the table. The log shows them all."""

_WHOLE_ADDRESS = TABLE_WIDTH // 2
"""Characters of an address that are not broken over two lines, so that it can be copied."""

_WORDS = {
    Outcome.REFUSED: "refused",
    COMMIT_FAILED: "commit failed",
    TRIALS_FAILED: "failed again",
    UNREADABLE: "unreadable",
    Outcome.MISFIT: "misfit",
    Outcome.RESTORED: "restored",
    Outcome.CONTINUE_SEARCH: "search goes on",
    Outcome.LEFT_ALONE: "left alone",
}
"""What the table shows, in the order of its rows: those that a person must look at come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentLine:
    """One experiment, and what became of it.

    Args:
        experiment: Its address.
        outcome: One of `Outcome`, `COMMIT_FAILED`, `TRIALS_FAILED` or `UNREADABLE`.
        trials_run: Trials that were resumed, restarted or drawn.
        trials_finished: How many of them are TERMINATED now.
        by_name: As in `OutcomeXCom`.
        reason: Why it was not restored, or what was done.
    """

    experiment: str
    outcome: str
    trials_run: int = 0
    trials_finished: int = 0
    by_name: bool = False
    reason: str = ""

    @classmethod
    def of_plan(cls, item: OutcomeXCom) -> Self:
        """Describe an experiment for which nothing is to commit."""
        return cls(
            experiment=item.experiment,
            outcome=str(item.outcome),
            by_name=item.by_name,
            reason=printable(item.reason, NOTE_LENGTH),
        )

    @classmethod
    def of_commit(cls, item: OutcomeXCom, summary: CommitSummary) -> Self:
        """Describe an experiment that was committed."""
        ran = [change for change in summary.changes if change.was_run]
        return cls(
            experiment=item.experiment,
            outcome=TRIALS_FAILED if summary.failed else str(item.outcome),
            trials_run=len(ran),
            trials_finished=len(ran) - len(summary.failed),
            by_name=item.by_name,
            reason=summary.headline().removeprefix(f"{summary.experiment}: "),
        )


@dataclass(frozen=True, slots=True)
class ExperimentTable:
    """The lines of all experiments, those that a person must look at first.

    Args:
        lines: The lines.
        not_listed: How many more the sensor left alone.
    """

    lines: tuple[ExperimentLine, ...]
    not_listed: int = 0

    @classmethod
    def build(cls, lines: Iterable[ExperimentLine], left_alone: Mapping[str, Any]) -> Self:
        """Put the lines in order, and add those that the sensor left alone."""
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
        order = {word: number for number, word in enumerate(_WORDS)}
        ordered = sorted(known.values(), key=lambda line: (order[line.outcome], line.experiment))
        return cls(tuple(ordered), int(left_alone.get("not_listed") or 0))

    def to_xcom(self) -> list[dict[str, Any]]:
        """Return the XCom form: strict JSON, at most `MAX_EXPERIMENTS` lines."""
        return [
            {**asdict(line), "outcome": str(line.outcome)} for line in self.lines[:MAX_EXPERIMENTS]
        ]

    def headline(self) -> str:
        """Return how many experiments had which outcome."""
        counts = {word: sum(each.outcome == word for each in self.lines) for word in _WORDS}
        words = ", ".join(
            f"{counts[word]} {shown}" for word, shown in _WORDS.items() if counts[word]
        )
        return f"{counted(len(self.lines), 'experiment')}: {words}"

    def render(self) -> str:
        """Return the table as plain text."""
        from rich import box  # its import takes longer than a plan
        from rich.table import Table

        longest = max((len(line.experiment) for line in self.lines), default=0)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("experiment", overflow="fold", min_width=min(longest, _WHOLE_ADDRESS))
        table.add_column("outcome", no_wrap=True)
        table.add_column("trials", no_wrap=True)
        table.add_column("what happened", overflow="fold")
        for line in self.lines:
            trials = f"{line.trials_finished} of {line.trials_run} finished"
            by_name = "taken by the name of its trainable alone; " if line.by_name else ""
            table.add_row(
                printable(line.experiment),
                _WORDS[line.outcome],
                trials if line.trials_run else "-",
                f"{by_name}{line.reason}",
            )
        text = render(table, TABLE_WIDTH)
        if not self.not_listed:
            return text
        return f"{text}\n… and {self.not_listed} more that were left alone; the log of find counts them."
