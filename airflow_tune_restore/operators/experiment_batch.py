"""The experiments of one plan task, and what became of each: one that fails does not stop the others."""

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    LeaseHeldError,
    StateChangedError,
    TrainableMisfitError,
    TuneRestoreError,
    UnexpectedError,
    UnknownTrainableError,
)
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.hooks.airflow_errors import PERMANENT
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.operators.outcome_list import NEEDS_COMMIT, OutcomeList
from airflow_tune_restore.operators.xcom import Outcome, OutcomeXCom
from airflow_tune_restore.protocol.names import is_sweep
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, first_of, printable
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

PREFIXES_PAGE = "docs/trainable.md (One name, two trainables)"
"""Explains what a trainable is compared with, and how to separate the experiments of teams."""

_CONCURRENCY = 8
_SHOWN, _NAMED = 50, 500

_Result = TypeVar("_Result")


def describe_holder(error: LeaseHeldError) -> str:
    """Return why an experiment is left alone that another restore works on."""
    found = f". {error.found}" if error.found else ""
    if is_sweep(error.restore_id):
        return f"its own sweep, {error.holder}, is running{found}"
    return f"another restore, {error.holder}, is restoring it{found}"


class ExperimentBatch:
    """The experiments that one plan task was given. Each method takes the text of an address.

    Args:
        addresses: Their addresses.
        shares_prefix: Whether they are known to lie beside experiments in other directories.
        fails_on_unknown: Whether an experiment is refused if no trainable is given for it.
        find_started: Returns the id of the task's own restore of an experiment if it may hold the lease.

    Attributes:
        places: Their addresses, by text.
    """

    def __init__(
        self,
        addresses: Iterable[Address],
        *,
        shares_prefix: bool = False,
        fails_on_unknown: bool = False,
        find_started: Callable[[Address], str | None] = lambda _: None,
    ) -> None:
        self.places = {str(address): address for address in addresses}
        self._shares_prefix = shares_prefix
        self._fails_on_unknown = fails_on_unknown
        self._find_started = find_started
        self._outcomes: dict[str, OutcomeXCom] = {}
        self._may_pass: set[str] = set()

    @property
    def spans_directories(self) -> bool:
        """Whether they lie in different directories, so that they may belong to different people."""
        parents = {Location.parse(place.uri).parent for place in self.places.values()}
        return self._shares_prefix or len(parents) > 1

    def map(
        self, work: Callable[[str], _Result], addresses: Iterable[str]
    ) -> list[tuple[str, _Result]]:
        """Work on all experiments at the same time; the outcome of one that fails is its error."""

        def attempt(address: str) -> tuple[str, _Result] | None:
            try:
                return address, work(address)
            except TuneRestoreError as error:
                self.refuse(address, error)
            except Exception as error:  # noqa: BLE001  reported, and it must not stop the others
                self.refuse(address, report_unexpected(address, error))
            return None

        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            return [done for done in pool.map(attempt, addresses) if done is not None]

    def take(self, address: str, restore_id: str, *, by_name: bool = False) -> None:
        """Record that its restore is started."""
        self._decide(address, Outcome.RESTORED, restore_id=restore_id, by_name=by_name)

    def continue_search(self, address: str, *, by_name: bool = False) -> None:
        """Record that only its search is left to continue."""
        reason = "only its search is left, which the task continue_search continues"
        self._decide(address, Outcome.CONTINUE_SEARCH, reason, by_name=by_name)

    def wait(self, address: str, reason: str, *, trials: int) -> None:
        """Record that a later DAG run takes it, with so many trials."""
        self._decide(address, Outcome.WAITING, reason, waiting=trials)

    def describe_part(self, address: str, plan: RestorePlan) -> None:
        """Record which trials of a restore wait, and which have no task of their own."""
        known = self._outcomes[address]
        self._outcomes[address] = replace(known, waiting=plan.waiting, rest=len(plan.rest))

    def leave_alone(self, address: str, reason: str) -> None:
        """Record why it is not to be restored now."""
        self._decide(address, Outcome.LEFT_ALONE, reason)

    def refuse(self, address: str, error: TuneRestoreError) -> None:
        """Record an error instead of a restore. Some errors only show that it is not the time for it."""
        match error:
            case LeaseHeldError():
                self.leave_alone(address, describe_holder(error))
            case ExperimentRunningError():
                self.leave_alone(address, f"it is running: {error.reason}")
            case StateChangedError():  # by its driver, or by a restore that was faster
                self.leave_alone(address, str(error))
            case TrainableMisfitError():
                self._decide(address, Outcome.MISFIT, str(error))
            case UnknownTrainableError() if not self._fails_on_unknown:
                self._decide(address, Outcome.UNKNOWN, str(error))
            case _:
                self.withdraw(address, str(error))
                if not isinstance(error, (*PERMANENT, UnexpectedError)):
                    self._may_pass.add(address)

    def withdraw(self, address: str, reason: str) -> None:
        """Record that none of its trials runs. A restore that an earlier try started is committed."""
        restore_id = self._find_started(self.places[address])
        outcome = Outcome.REFUSED if restore_id is None else Outcome.RESTORED
        self._decide(address, outcome, reason, restore_id=restore_id)

    def adopt(self, outcome: OutcomeXCom) -> None:
        """Record the outcome that another task has found for an experiment."""
        self._decide(outcome.experiment, outcome.outcome, outcome.reason, waiting=outcome.waiting)

    @property
    def outcomes(self) -> list[OutcomeXCom]:
        """The outcomes so far, in the order in which the experiments were given."""
        known = (self._outcomes.get(address) for address in self.places)
        return [each for each in known if each is not None]

    def undecided(self, prepared: dict[str, _Result]) -> dict[str, _Result]:
        """Return those of the prepared restores that are still to be started."""
        return {
            address: each for address, each in prepared.items() if address not in self._outcomes
        }

    def without_twins(self, prepared: dict[str, PreparedRestore]) -> dict[str, PreparedRestore]:
        """Leave alone an experiment that was given twice, in two spellings; return the others."""
        first: dict[tuple[str, str | None], str] = {}
        for address, each in prepared.items():
            twin = first.setdefault((each.store.uri, self.places[address].conn_id), address)
            if twin != address:
                self.leave_alone(address, f"it is the same experiment as {twin}")
        return self.undecided(prepared)

    def to_xcom(self) -> Any:
        """Return the outcomes for the tasks that follow."""
        return OutcomeList.build(self.outcomes).to_xcom()

    def log(self, log: "Logger") -> None:
        """Log why experiments are not restored, and which ones were taken by name alone.

        Those that need a person are all named; of the others, the first ones.
        """
        others: list[str] = []
        for each in self._outcomes.values():
            match each.outcome:
                case Outcome.RESTORED if each.reason:
                    log.warning("%s: none of its trials runs: %s", each.experiment, each.reason)
                case Outcome.MISFIT | Outcome.UNKNOWN | Outcome.REFUSED:
                    log.warning("%s is not restored: %s", each.experiment, each.reason)
                case Outcome.WAITING:
                    others.append(f"{each.experiment} {each.reason}")
                case Outcome.LEFT_ALONE:
                    others.append(f"{each.experiment} is left alone: {each.reason}")
                case Outcome.CONTINUE_SEARCH:
                    others.append(f"{each.experiment}: {each.reason}")
        for line in others[:_NAMED]:
            log.info("%s", line)
        if len(others) > _NAMED:
            more_others = len(others) - _NAMED
            log.info("… and %d more that wait, are left alone or only continued.", more_others)
        by_name = [each.experiment for each in self._outcomes.values() if each.by_name]
        if by_name:
            more = f" and {len(by_name) - _SHOWN} more" if len(by_name) > _SHOWN else ""
            log.warning(
                "Taken by the name of the trainable alone, below a prefix with several directories: "
                "%s%s. If another team uses the same name, its experiments now train with this code. A "
                "key by place in trainable, such as 'team_a/**', keeps them apart. %s explains what is "
                "compared.",
                *(", ".join(by_name[:_SHOWN]), more, PREFIXES_PAGE),
            )

    def stop_without_work(self, *, has_tries: bool) -> None:
        """Skip the task if nothing is to do; fail it if a retry may help.

        A retry may help if nothing was started, or if a restore that an earlier try started cannot be
        read.
        """
        outcomes = {each.outcome for each in self._outcomes.values()}
        unread = [each for key in self._may_pass if (each := self._outcomes[key]).restore_id]
        if has_tries and unread:
            raise AirflowException(
                f"A restore that an earlier try started cannot be continued yet. {_reasons(unread)}"
            )
        if outcomes.intersection(NEEDS_COMMIT):
            return
        first = sorted(self._outcomes.items(), key=lambda item: item[0] not in self._may_pass)
        reasons = _reasons([each for _, each in first])
        if has_tries and self._may_pass:
            raise AirflowException(f"Nothing could be restored. {reasons}")
        if outcomes <= {Outcome.LEFT_ALONE, Outcome.UNKNOWN, Outcome.WAITING}:
            raise AirflowSkipException(
                f"Nothing to restore. {reasons or 'No experiment was given.'}"
            )

    def stop_unless(self, work: Collection[str]) -> None:
        """End the task unless there is work: nobody is to be asked.

        Raises:
            AirflowFailException: If a person must do something first, with the reasons.
            AirflowSkipException: Otherwise.
        """
        if work:
            return
        needed = [each for each in self.outcomes if each.is_refused]
        if needed:
            raise AirflowFailException(
                f"Nothing can be restored before a person has done something. {_reasons(needed)}"
            )
        raise AirflowSkipException(f"Nothing to restore. {_reasons(self.outcomes)}")

    def _decide(self, address: str, outcome: Outcome, reason: str = "", **more: Any) -> None:
        self._may_pass.discard(address)
        place = self.places[address]
        # wherever it is shown, the experiment is named before it
        said = place.named_in(reason).removeprefix(f"{place}: ")
        self._outcomes[address] = OutcomeXCom(
            experiment=str(place),
            outcome=outcome,
            reason=printable(said, NOTE_LENGTH),
            **more,
        )


def _reasons(outcomes: Sequence[OutcomeXCom]) -> str:
    return first_of([f"{each.experiment}: {each.reason}" for each in outcomes])
