"""The numbers of a DAG run: experiments by outcome, trials that ran, and what waits for the next one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.xcom import Outcome
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.restore.summary import describe_waiting

COMMIT_FAILED = "commit_failed"
"""The outcome of an experiment whose restore was started, but could not be committed."""

TRIALS_FAILED = "trials_failed"
"""The outcome of a restored experiment if a trial that ran has not finished."""

TRIALS_PAUSED = "trials_paused"
"""The outcome of a restored experiment if its window has paused trials, and none has failed."""

UNREADABLE = "unreadable"
"""The outcome of an experiment that the sensor could not read. No task fails because of it."""

WORDS = {
    Outcome.REFUSED: "refused",
    COMMIT_FAILED: "commit failed",
    TRIALS_FAILED: "failed again",
    UNREADABLE: "unreadable",
    Outcome.UNKNOWN: "no trainable",
    Outcome.MISFIT: "misfit",
    TRIALS_PAUSED: "paused",
    Outcome.RESTORED: "restored",
    Outcome.CONTINUE_SEARCH: "search goes on",
    Outcome.NOT_STARTED: "not started",
    Outcome.WAITING: "waiting",
    Outcome.LEFT_ALONE: "left alone",
}
"""The words of the table, in the order of its rows: those that a person must look at come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The XCom `totals` of the commit task. Keys are a wire format: only ever add some.

    Args:
        experiments: How many there are of each outcome, as in `ExperimentLine`.
        trials_run: Trials that were resumed, restarted or drawn.
        trials_finished: How many of them are TERMINATED now.
        trials_advanced: How many of the others got further.
        trials_paused: How many of the others go on in the next restore, because the window had ended.
        waiting_experiments: Experiments that wait for a later DAG run, whole or in part.
        waiting_trials: Trials of these that wait.
    """

    experiments: Mapping[str, int] = field(default_factory=dict)
    trials_run: int = 0
    trials_finished: int = 0
    trials_advanced: int = 0
    waiting_experiments: int = 0
    waiting_trials: int = 0
    trials_paused: int = 0

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Parse the XCom; of a commit that never ran (None) there is nothing to count.

        Raises:
            InvalidInputError: If it is not valid.
        """
        if value is None:
            return cls()
        try:
            known = {each.name: value[each.name] for each in fields(cls) if each.name in value}
            counts = {str(word): int(n) for word, n in dict(known.pop("experiments", {})).items()}
            return cls(experiments=counts, **{name: int(n) for name, n in known.items()})
        except (AttributeError, TypeError, ValueError):
            raise InvalidInputError(
                f"totals: {value!r} is not the XCom of a CommitRestoreOperator."
            ) from None

    @property
    def shows_progress(self) -> bool:
        """Whether a trial that ran has finished, or got further."""
        return bool(self.trials_finished or self.trials_advanced)

    def to_xcom(self) -> dict[str, Any]:
        """Return the XCom form."""
        return asdict(self)

    def describe(self) -> str:
        """Return them in one sentence."""
        number = counted(sum(self.experiments.values()), "experiment")
        words = ", ".join(f"{n} {shown}" for shown, n in name_outcomes(self.experiments).items())
        waits = f"; {self.describe_waiting()}" if self.waiting_experiments else ""
        paused = f"; {counted(self.trials_paused, 'trial')} paused" if self.trials_paused else ""
        return f"{number}: {words}{paused}{waits}"

    def describe_waiting(self) -> str:
        """Return what waits: "7 trials wait for the next DAG run, in 2 experiments"."""
        experiments = counted(self.waiting_experiments, "experiment")
        if not self.waiting_trials:  # only their searches are left
            verb = "waits" if self.waiting_experiments == 1 else "wait"
            return f"{experiments} {verb} for the next DAG run"
        return f"{describe_waiting(self.waiting_trials)} for the next DAG run, in {experiments}"


def name_outcomes(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers of experiments by the words of the table, in the order of its rows."""
    return {shown: counts[word] for word, shown in WORDS.items() if counts.get(word)}
