"""The XCom `outcomes` of the plan task: what became of all experiments that it was given."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from airflow.sdk import Context

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.hooks.xcom_size import fits, most_fitting, pack
from airflow_tune_restore.operators.xcom import (
    Outcome,
    OutcomeXCom,
    resolve_list,
    resolve_xcom,
)
from airflow_tune_restore.protocol.printable import shortened

NEEDS_COMMIT = (Outcome.RESTORED, Outcome.CONTINUE_SEARCH)
"""The outcomes that later tasks work on. The others are shown, and one refused fails the last task."""

_ONLY_SHOWN = (
    Outcome.REFUSED,
    Outcome.UNKNOWN,
    Outcome.MISFIT,
    Outcome.NOT_STARTED,
    Outcome.WAITING,
    Outcome.LEFT_ALONE,
)
"""The others, in the order in which they are listed while there is room."""

_NOT_LISTED, _WAITING_TRIALS = "not_listed", "waiting_trials"
_REASONS_LENGTH, _SHORTEST = 100_000, 80
"""Characters of all reasons in the XCom together, and of each at least. The log has them whole."""

_IN_THE_LOG = "the log of the plan task has the reason"
_RESERVED_PARTS = 8
"""One part of so many stays free when restores are started: their outcomes may still change."""


@dataclass(frozen=True, slots=True)
class OutcomeList:
    """The outcomes of all experiments, and how many are not listed, by outcome.

    While all fit into an XCom, it is a list in the order in which the experiments were given. Else it is
    one packed list: first those that need a commit, then as many of the others as fit.
    `unlisted_trials` is how many trials of experiments that are not listed wait.
    """

    items: tuple[OutcomeXCom, ...]
    not_listed: Counter[str] = field(default_factory=Counter)
    unlisted_trials: int = 0

    @classmethod
    def build(cls, outcomes: Iterable[OutcomeXCom]) -> Self:
        """Take all outcomes; where there are many, their reasons are shortened."""
        given = list(outcomes)
        most = max(_SHORTEST, _REASONS_LENGTH // max(len(given), 1))
        return cls(tuple(replace(each, reason=shortened(each.reason, most)) for each in given))

    @classmethod
    def resolve(cls, value: Any, context: Context) -> Self:
        """Read the XCom of a plan task (empty if it never ran), or what a user gives in its place.

        Raises:
            InvalidInputError: If it is not valid.
        """
        value = resolve_xcom(value, context)
        items = tuple(OutcomeXCom.parse(item) for item in resolve_list(value, context))
        given = value if isinstance(value, Mapping) else {}
        counts, trials = given.get(_NOT_LISTED, {}), given.get(_WAITING_TRIALS, 0)
        try:
            not_listed: Counter[str] = Counter(
                {Outcome(word): int(n) for word, n in counts.items()}
            )
            return cls(items, not_listed, int(trials))
        except (AttributeError, TypeError, ValueError):
            raise InvalidInputError(f"outcomes: {counts!r} counts no outcomes.") from None

    def to_xcom(self) -> Any:
        """Return the XCom form."""
        whole = [item.to_xcom() for item in self.items]
        if fits(whole):
            return whole
        needed = [item for item in self.items if item.outcome in NEEDS_COMMIT]
        others = [item for item in self.items if item.outcome not in NEEDS_COMMIT]
        others.sort(key=lambda item: _ONLY_SHOWN.index(item.outcome))
        ordered = [item.to_short_xcom() for item in (*needed, *others)]

        def build(listed: int) -> dict[str, Any]:
            left_out = others[listed:]
            return {
                **pack(ordered[: len(needed) + listed]),
                _NOT_LISTED: dict(Counter(str(item.outcome) for item in left_out)),
                _WAITING_TRIALS: sum(item.waiting for item in left_out),
            }

        packed = build(most_fitting(len(others), build))
        if fits(packed):
            return packed
        ordered = [_without_reason(item).to_short_xcom() for item in needed]
        return build(0)


def most_started(restores: Sequence[tuple[str, str]]) -> int:
    """Return of how many restores, given as address and restore id, the outcomes fit into the XCom."""
    items = [
        OutcomeXCom(
            experiment=address, restore_id=restore_id, by_name=True, reason=_IN_THE_LOG
        ).to_short_xcom()
        for address, restore_id in restores
    ]
    reserve = xcom_size.MAX_XCOM_BYTES // _RESERVED_PARTS
    return most_fitting(len(items), lambda number: pack(items[:number]), beside=reserve)


def _without_reason(item: OutcomeXCom) -> OutcomeXCom:
    return replace(item, reason=_IN_THE_LOG) if item.reason else item
