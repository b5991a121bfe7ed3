"""Work on many experiments in one task: those that cannot be restored do not stop the others."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, TypeVar

from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airflow_tune_restore.exceptions import TuneRestoreError, UnexpectedError
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.hooks.airflow_errors import PERMANENT
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

_CONCURRENCY = 8
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class SkippedExperiments:
    """The experiments that are not restored, with the reasons, by address.

    `left_alone` are those with nothing to do: finished, or running. `refused` cannot be restored now.
    """

    left_alone: dict[str, str] = field(default_factory=dict)
    refused: dict[str, TuneRestoreError] = field(default_factory=dict)

    @property
    def unexpected(self) -> list[str]:
        """The unexpected errors, one line per experiment: the DAG run must fail at its end."""
        return [
            printable(str(error), NOTE_LENGTH)
            for error in self.refused.values()
            if isinstance(error, UnexpectedError)
        ]

    def log(self, log: "Logger") -> None:
        """Log each experiment with its reason."""
        for text, reason in self.left_alone.items():
            log.info("%s is left alone: %s", text, printable(reason, NOTE_LENGTH))
        for text, error in self.refused.items():
            log.warning("%s is not restored: %s", text, printable(str(error), NOTE_LENGTH))

    def stop_without_work(self) -> NoReturn:
        """Skip the task if there was nothing to do; fail it if an experiment was refused."""
        reasons = "; ".join(
            f"{address}: {printable(str(reason), NOTE_LENGTH)}"
            for address, reason in (self.refused | self.left_alone).items()
        )
        if any(isinstance(error, PERMANENT) for error in self.refused.values()):
            raise AirflowFailException(f"Nothing could be restored. {reasons}")
        if self.unexpected or (self.refused and not self.left_alone):
            raise AirflowException(f"Nothing could be restored. {reasons}")
        raise AirflowSkipException(f"Nothing to restore. {reasons or 'No experiment was given.'}")


def map_experiments(
    work: Callable[[str], _Result], addresses: Iterable[str], skipped: SkippedExperiments
) -> list[tuple[str, _Result]]:
    """Work on all experiments at the same time; `skipped` receives those that fail."""

    def attempt(address: str) -> tuple[str, _Result] | None:
        try:
            return address, work(address)
        except TuneRestoreError as error:
            skipped.refused[address] = error
        except Exception as error:  # noqa: BLE001  reported, and it must not stop the others
            skipped.refused[address] = report_unexpected(address, error)
        return None

    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        return [done for done in pool.map(attempt, addresses) if done is not None]
