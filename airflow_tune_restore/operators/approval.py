"""A yes, and what it counts for: the states that were shown, by SHA-256, and what is done with them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from airflow.sdk import Context

from airflow_tune_restore.exceptions import StateUnreadableError, TuneRestoreError
from airflow_tune_restore.experiments.experiment import StateFile
from airflow_tune_restore.experiments.read import read_base_state
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.xcom_size import fits, pack
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.operators.xcom import ItemXCom, Outcome, OutcomeXCom, resolve_list
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, first_of, printable
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.version_compat import AirflowFailException

SUBJECT_KEY, BODY_KEY = "subject", "body"
"""XCom keys of the preview task: what the approval shows."""

_SHORT_DIGEST = 16
"""Digits of a SHA-256 where there are too many experiments for whole ones, and those that people see."""

_NOT_SHOWN = "it was not approved: the preview did not show it"
_NOT_STARTED = (
    "it was shown for approval and not started: no yes was given, or the plan task failed"
)
_OTHER_WORK = (
    "its state is the same, but other trials, iterations or samples would run now: an option, a "
    "checkpoint or its quarantine has changed"
)
_HELD_BACK = "it is held back, because what was approved together with it has changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovedXCom(ItemXCom):
    """One experiment that is shown for approval.

    Args:
        state: Name of the state file that was shown; "" if it has none, or if there are very many.
        sha256: SHA-256 of it in hex, or the first digits; "" if it has none.
        work: A digest of what is done with its trials and samples; "" if there are very many.
    """

    state: str = ""
    sha256: str = ""
    work: str = ""
    _source: ClassVar[str] = "approved"

    @classmethod
    def of(cls, address: str, restore: PreparedRestore) -> Self:
        """Describe a restore that is shown."""
        base = restore.plan.base
        return cls(
            experiment=address,
            state=printable(base.name),
            sha256=base.sha256,
            work=_digest_work(restore),
        )

    def is_of(self, found: StateFile) -> bool:
        """Whether this state was shown."""
        return bool(self.sha256) == bool(found.sha256) and found.sha256.startswith(self.sha256)


def approved_to_xcom(items: Iterable[ApprovedXCom]) -> Any:
    """Return the XCom form: a list; if it is too large, a packed one, at last with short digests alone.

    That has fewer bytes than the XCom `outcomes`, by whose room a DAG run takes experiments.
    """
    listed = list(items)
    whole = [item.to_short_xcom() for item in listed]
    if fits(whole):
        return whole
    packed = pack(whole)
    if fits(packed):
        return packed
    short = [
        replace(item, state="", sha256=item.sha256[:_SHORT_DIGEST], work="") for item in listed
    ]
    return pack([item.to_short_xcom() for item in short])


@dataclass(frozen=True, slots=True)
class Approval:
    """The experiments that a person said yes to, and what the preview has found of the others."""

    items: Mapping[str, ApprovedXCom]
    others: Mapping[str, OutcomeXCom]

    @classmethod
    def resolve(cls, approved: Any, previewed: Any, context: Context) -> Self:
        """Read the XComs of a preview task. If it never ran, nothing is approved.

        Raises:
            InvalidInputError: If they are not valid.
        """
        items = [ApprovedXCom.parse(item) for item in resolve_list(approved, context)]
        known = {item.experiment: item for item in items}
        found = OutcomeList.resolve(previewed, context).items
        return cls(known, {each.experiment: each for each in found if each.experiment not in known})

    def limit(self, batch: ExperimentBatch) -> None:
        """Leave only approved experiments undecided."""
        for text in batch.places:
            if text in self.items:
                continue
            other = self.others.get(text)
            if other is not None and other.outcome not in (
                Outcome.RESTORED,
                Outcome.CONTINUE_SEARCH,
            ):
                batch.adopt(other)
            else:
                batch.leave_alone(text, _NOT_SHOWN)

    def check(
        self,
        batch: ExperimentBatch,
        prepared: Mapping[str, PreparedRestore],
        open_store: Callable[[Address], ObjectStore],
        next_step: str,
    ) -> None:
        """Refuse all that is approved if any of it is not what was shown.

        Restores that an earlier try of the task has started are what was shown: it has checked them.

        Raises:
            AirflowFailException: If a state has changed, or if another plan is made from it; with the
                name of each such experiment.
        """
        started = {each.experiment for each in batch.outcomes if each.outcome is Outcome.RESTORED}
        started |= {text for text, restore in prepared.items() if restore.is_started}
        places = [text for text in batch.places if text in self.items and text not in started]

        def compare(text: str) -> str:
            item, restore = self.items[text], prepared.get(text)
            if (
                restore is None
            ):  # it is running, leased, refused …: that may be because it has changed
                return _compare_newest(item, open_store(batch.places[text]))
            if not item.is_of(restore.plan.base):
                return _describe_change(item, restore.plan.base)
            if item.work and item.work != _digest_work(restore):
                return _OTHER_WORK
            return ""

        changes = {text: change for text, change in batch.map(compare, places) if change}
        if not changes:
            return
        for text in self.items.keys() & batch.places.keys():
            batch.withdraw(text, changes.get(text, _HELD_BACK))
        count = counted(len(changes), "experiment")
        nothing = "Nothing was started, and no lease was taken"
        if started:
            nothing = (
                f"{counted(len(started), 'restore')} of an earlier try will be committed as it is"
            )
        named = first_of([f"{text}: {change}" for text, change in changes.items()])
        wrote = " Find out what wrote there; its own driver may run again."
        raise AirflowFailException(
            f"Not what was approved any more: {count}. {nothing}. {named}."
            f"{wrote if set(changes.values()) - {_OTHER_WORK} else ''} "
            f"A yes counts only for what was shown: {next_step}"
        )


def not_started(previewed: Iterable[OutcomeXCom]) -> list[OutcomeXCom]:
    """Return what became of previewed experiments if the plan never ran."""
    return [
        replace(each, outcome=Outcome.NOT_STARTED, restore_id=None, reason=_NOT_STARTED)
        if each.outcome in (Outcome.RESTORED, Outcome.CONTINUE_SEARCH)
        else each
        for each in previewed
    ]


def _compare_newest(item: ApprovedXCom, store: ObjectStore) -> str:
    """Return how the newest state differs from the approved one; "" if it does not, or is unknown."""
    try:
        found, _ = read_base_state(store, store.list_dir())
    except StateUnreadableError as error:
        return f"{_shown(item)} was approved, and no state can be read now ({error.reason})"
    except TuneRestoreError:  # it is refused for that
        return ""
    return "" if item.is_of(found) else _describe_change(item, found)


def _describe_change(item: ApprovedXCom, found: StateFile) -> str:
    now = ApprovedXCom(experiment=item.experiment, state=found.name, sha256=found.sha256)
    return printable(
        f"{_shown(item)} was approved, and its newest state is {_shown(now)} now", NOTE_LENGTH
    )


def _shown(item: ApprovedXCom) -> str:
    if not item.sha256:
        return "no state"
    return f"{printable(item.state) or 'the state'} (SHA-256 {item.sha256[:_SHORT_DIGEST]}…)"


def _digest_work(restore: PreparedRestore) -> str:
    """Return a digest of what is done with the trials and samples, the same in preview and plan."""
    plan = restore.plan
    changed = [
        [trial.trial_id, trial.action.value, trial.checkpoint, trial.iteration]
        for trial in plan.trials
        if trial.action is not TrialAction.KEEP
    ]
    work = [plan.strategy.value, restore.samples_to_draw, changed]
    return hashlib.sha256(json.dumps(work).encode()).hexdigest()[:_SHORT_DIGEST]
