"""Which of the trials that the resume flags choose a restore takes: `only=`, `--only KEY=VALUE`."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Self, TypeVar

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments import path_glob
from airflow_tune_restore.experiments.trial import Trial, TrialStatus, follow_metric
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.protocol.printable import printable

_SIGNS = "<>"
WORDS = ("trial", "status", "cause")
"""Keys whose values are words: one text may hold several between commas."""

_SHOWN = 100
"""Characters of a value in a message."""

_Word = TypeVar("_Word", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A bound of a metric: `loss<0.5`."""

    metric: str
    operator: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `NAME OPERATOR NUMBER`, with one of `<`, `<=`, `>` and `>=` (else InvalidInputError)."""
        at = max(map(text.rfind, _SIGNS))
        name, operator, number = text[:at].strip(), text[at : at + 1], text[at + 1 :]
        if number.startswith("="):
            operator, number = f"{operator}=", number[1:]
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if at < 1 or not name or name[-1] in f"{_SIGNS}=!" or math.isnan(value):
            raise InvalidInputError(
                f"only: metric={_shown(text)} is not a bound of a metric. Write it as loss<0.5, with "
                "<, <=, > or >= and a number."
            )
        return cls(name, operator, value)

    def holds(self, result: Mapping[str, Any]) -> bool:
        """Whether the metric of a result is a number within the bound; NaN is not."""
        found = follow_metric(result, self.metric)
        if type(found) not in (int, float):
            return False
        below = found < self.value if self.operator[0] == "<" else found > self.value
        return below or (self.operator.endswith("=") and found == self.value)

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.value!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """Which trials are restored. The values of one key are alternatives; all keys must match.

    Only `metric` differs: all of its bounds must hold, so that two of them are a range. Empty keys match
    everything.

    Args:
        trial: Ids.
        status: Status words, as the state has them.
        cause: Causes of the last failure.
        error: Regular expressions that match somewhere in `Type: message` of the last failure.
        metric: Bounds of metrics in the last result.
        experiment: Globs (`path_glob.matches`). All other experiments are left alone.
    """

    trial: tuple[str, ...] = ()
    status: tuple[TrialStatus, ...] = ()
    cause: tuple[Cause, ...] = ()
    error: tuple[str, ...] = ()
    metric: tuple[Threshold, ...] = ()
    experiment: tuple[str, ...] = ()

    @classmethod
    def parse(cls, given: Any) -> Self:
        """Parse a mapping from keys to a value or several, or texts `KEY=VALUE`, one or several.

        Of one text, each line that is not blank is one. In `trial`, `status` and `cause` a text may hold
        several values between commas.

        Raises:
            InvalidInputError: If it is not valid, or selects by nothing: that must not mean all trials.
        """
        pairs = list(_pairs(given))
        if not pairs:
            raise InvalidInputError(
                f"only={_shown(given)} is empty. Nothing was done. Does its template name a Param, a "
                "Variable or an XCom that is empty? To take all trials, leave only out."
            )
        known = [field.name for field in fields(cls)]
        texts: dict[str, dict[str, None]] = {}
        for key, value in pairs:
            if not isinstance(key, str) or key not in known:
                raise _unknown("key", key, known)
            texts.setdefault(key, {}).update(dict.fromkeys(_values(key, value)))
        for pattern in texts.get("error", ()):
            _check_pattern(pattern)
        for pattern in texts.get("experiment", ()):
            path_glob.check_pattern("only: experiment", pattern)
        words = {key: tuple(values) for key, values in texts.items()}
        return cls(
            trial=words.get("trial", ()),
            status=tuple(_word("status", text, TrialStatus) for text in words.get("status", ())),
            cause=tuple(_word("cause", text, Cause) for text in words.get("cause", ())),
            error=words.get("error", ()),
            metric=tuple(map(Threshold.parse, words.get("metric", ()))),
            experiment=words.get("experiment", ()),
        )

    @property
    def texts(self) -> list[str]:
        """The texts `KEY=VALUE` that it is parsed from."""
        return [
            f"{field.name}={value}" for field in fields(self) for value in getattr(self, field.name)
        ]

    @property
    def narrows(self) -> bool:
        """Whether it takes some trials of an experiment, and not all."""
        return bool(self.trial or self.status or self.metric or self.needs_failure)

    @property
    def needs_failure(self) -> bool:
        """Whether it asks for the last failure of a trial."""
        return bool(self.cause or self.error)

    def why_not(self, uri: str, prefix: str | None) -> str:
        """Return why an experiment is left alone; "" if a glob names it, or if there is none."""
        globs = self.experiment
        if not globs or any(path_glob.matches(uri, glob, prefix) for glob in globs):
            return ""
        return f"no glob of {Only(experiment=globs)} names it"

    def takes(self, trial: Trial) -> bool:
        """Whether a trial matches, as far as its row shows it."""
        if (self.trial and trial.trial_id not in self.trial) or (
            self.status and trial.status not in self.status
        ):
            return False
        if not self.metric:
            return True
        result = {} if trial.unusable else trial.last_result
        return all(bound.holds(result) for bound in self.metric)

    def takes_failure(self, cause: str, error: str) -> bool:
        """Whether the last failure of a trial matches."""
        if self.cause and cause not in self.cause:
            return False
        return not self.error or any(re.search(one, error) for one in self.error)

    def __str__(self) -> str:
        return printable(f"only={', '.join(self.texts)}")


def _pairs(given: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(given, Mapping):
        return given.items()
    if isinstance(given, str):
        given = [line for line in given.splitlines() if line.strip()]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise InvalidInputError(
            f"only={_shown(given)} is neither a mapping nor a list of texts KEY=VALUE."
        )
    return [_pair(text) for text in given]


def _pair(text: Any) -> tuple[str, str]:
    key, separator, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not separator:
        raise InvalidInputError(
            f"only: {_shown(text)} is not of the form KEY=VALUE, as cause=out_of_memory."
        )
    return key.strip(), value


def _values(key: str, value: Any) -> list[str]:
    """Return the values of one key (InvalidInputError if there is none, or one is empty)."""
    items: list[Any] = []
    if isinstance(value, str):
        several = value.replace("\n", ",").split(",") if key in WORDS else [value]
        items = [part for part in several if part.strip()]
    elif isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        items = list(value)
    if not items or not all(isinstance(i, str) and i.strip() not in ("", "None") for i in items):
        raise InvalidInputError(
            f"only: {key}={_shown(value)} is empty, or holds a value that is not text. Nothing was "
            f"done. Does its template name a Param that is empty? To take any {key}, leave it out."
        )
    return [item.strip() for item in items]


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            f"only: error={_shown(pattern)} is not a regular expression: {error}."
        ) from None


def _word(key: str, text: str, words: type[_Word]) -> _Word:
    if text not in list(words):
        raise _unknown(key, text, list(words))
    return words(text)


def _unknown(what: str, text: Any, known: Iterable[str]) -> InvalidInputError:
    """Return the error for an unknown word; one of other order or case is like it (`lost_node`)."""
    by_parts = {_in_order(word): word for word in known}
    near = get_close_matches(_in_order(str(text)[:100]), by_parts, n=1)
    hint = f" Did you mean {by_parts[near[0]]}?" if near else ""
    return InvalidInputError(
        f"only: {what} {_shown(text)} is unknown.{hint} Known are {', '.join(by_parts.values())}."
    )


def _in_order(word: str) -> str:
    return "_".join(sorted(word.casefold().split("_")))


def _shown(value: Any) -> str:
    return printable(repr(value), _SHOWN)
