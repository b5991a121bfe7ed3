"""Parses operator arguments: literals when the DAG is parsed, and all of them when the task runs.

Then a template is text: `{{ params.x }}` renders to a string.
"""

import ast
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import time, timedelta
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.only import WORDS, Only
from airflow_tune_restore.restore.recipes import Recipes, parse_modules

RESUME_FLAGS = ("resume_unfinished", "resume_errored", "restart_errored", "resume_cut_short")
"""The arguments of `ResumeFlags.from_flags`."""

SWITCHES = tuple(field.name for field in fields(PlanChoices) if field.type is bool)
"""The choices that are true or false: arguments of the same names."""

MIN_LEASE_TTL = timedelta(seconds=3 * lease.RENEW_SECONDS)
"""Shortest `lease_ttl`: two renewals may be late."""

_TIME_OF_DAY = re.compile(r"([01]?[0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?")
_BETWEEN_IDS = re.compile(r"[,\n]")
_NAMES = ("python", "runner_user", "ray_address", "ray_conn_id", "storage_conn_id")
_CODE = ("trainable", "param_space", "search_alg")
SKIP_UNKNOWN, _FAIL_UNKNOWN = "skip", "fail"
"""What `on_unknown` does with an experiment that no trainable is given for."""

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off", "none", ""})


def parse_bool(name: str, value: Any) -> bool:
    """Parse a flag."""
    if isinstance(value, bool) or value is None:
        return bool(value)
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidInputError(f"{name}={value!r} is neither true nor false.")


def parse_span(name: str, value: Any) -> timedelta:
    """Parse a duration: a timedelta, or seconds."""
    if isinstance(value, timedelta):
        span = value
    else:
        try:
            span = timedelta(seconds=float(value))
        except (TypeError, ValueError, OverflowError):
            raise InvalidInputError(f"{name}={value!r} is not a number of seconds.") from None
    if span < timedelta():
        raise InvalidInputError(f"{name}={value!r} is less than zero.")
    return span


def parse_lease_ttl(name: str, value: Any) -> timedelta:
    """Parse how long a lease lasts without a renewal: a timedelta, or seconds."""
    span = parse_span(name, value)
    if span < MIN_LEASE_TTL:
        raise InvalidInputError(
            f"{name}={value!r} is less than {MIN_LEASE_TTL.total_seconds():.0f} s: a restore that lives "
            f"renews its lease only every {lease.RENEW_SECONDS:.0f} s, so another one would take it."
        )
    lease.check_ttl(span.total_seconds())
    return span


def parse_limit(name: str, value: Any) -> timedelta:
    """Parse how long something may take: a timedelta, or seconds; not 0."""
    span = parse_span(name, value)
    if not span:
        raise InvalidInputError(f"{name}={value!r} leaves no time.")
    return span


def parse_count(name: str, value: Any) -> int | None:
    """Parse an optional number of at least one."""
    text = parse_text(value)
    if text is None:
        return None
    try:
        count = int(text)
    except ValueError:
        raise InvalidInputError(f"{name}={value!r} is not a whole number.") from None
    if count < 1:
        raise InvalidInputError(f"{name}={value!r} is less than one.")
    return count


def parse_time_of_day(name: str, value: Any) -> time | None:
    """Parse an optional time of day, as `07:00`; a template that rendered to nothing is refused."""
    if value is None:
        return None
    text = str(value).strip()
    if _TIME_OF_DAY.fullmatch(text) is None:
        raise InvalidInputError(f"{name}={value!r} is not a time of day, as '07:00'.")
    return time.fromisoformat(text if text[2] == ":" else f"0{text}")


def parse_optional_limit(name: str, value: Any) -> timedelta | None:
    """Parse an optional duration: a timedelta, or seconds; not 0."""
    return None if value is None else parse_limit(name, value)


def parse_bytes(name: str, value: Any) -> float:
    """Parse an amount of memory in bytes, as for Ray's `memory` resource."""
    try:
        amount = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(f"{name}={value!r} is not a number of bytes.") from None
    if not 0 <= amount < math.inf:
        raise InvalidInputError(f"{name}={value!r} is not an amount of memory.")
    return amount


def parse_text(value: Any) -> str | None:
    """Parse an optional text; a template that rendered to nothing gives None."""
    if value is None:
        return None
    text = str(value).strip()
    return None if text in ("", "None") else text


def parse_ids(name: str, value: Any) -> tuple[str, ...]:
    """Parse a list of ids, or text that holds them: between commas or lines, or a rendered list.

    An argument that was given and names none is refused: an empty line of a form must not mean all.
    """
    items = _split_ids(value) if isinstance(value, str) else _parse_list(name, value or (), "ids")
    if not all(isinstance(item, str) and item.strip() for item in items):
        raise InvalidInputError(f"{name}={value!r} holds an empty value, or one that is not an id.")
    if not items:
        raise InvalidInputError(
            f"{name}={value!r} names no trial. Nothing was done. Does its template name a Param, a "
            f"Variable or an XCom that is empty? To take all trials, leave {name} out."
        )
    return tuple(item.strip() for item in items)


def _split_ids(text: str) -> list[Any]:
    """Return the items of a list that a template rendered to text, or the parts of any other text."""
    text = parse_text(text) or ""
    if not text.startswith("["):
        return [part for part in _BETWEEN_IDS.split(text) if part.strip()]
    items = _read_literal(text)
    return items if isinstance(items, list) else [None]


def _read_literal(text: str) -> Any:
    """Return the list or mapping that a template rendered to text; None if it is not one."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return None


def parse_only(name: str, value: Any) -> Only:  # noqa: ARG001  a parser takes the name
    """Parse which trials are restored, also where a template rendered a list or mapping to text."""
    if isinstance(value, str):
        text = parse_text(value) or ""
        value = _read_literal(text) if text.startswith(("[", "{")) else text
    if isinstance(value, Mapping):
        value = {key: _read_words(key, each) for key, each in value.items()}
    return Only.parse(value)


def _read_words(key: Any, value: Any) -> Any:
    """Return the list of words that a template rendered to text; patterns may start with `[`, too."""
    is_list = key in WORDS and isinstance(value, str) and value.strip().startswith("[")
    return _split_ids(value) if is_list else value


def parse_user(value: Any, *, was_given: bool) -> str | None:
    """Parse the user of runners; None only if the argument was not given.

    An argument that rendered to nothing is refused: a missing Variable must not remove this protection.
    """
    user = parse_text(value)
    if user is None and was_given:
        raise InvalidInputError(
            f"runner_user={value!r} is not the name of a user. Nothing was started: runners would run as "
            "the worker's user. Does its template name a Variable or an XCom that is not set? To run "
            "them as the worker's user, leave runner_user out."
        )
    return user


def parse_globs(name: str, value: Any) -> tuple[str, ...]:
    """Parse patterns, or a single one."""
    if value is None:
        return ()
    patterns = [value] if isinstance(value, str) else _parse_list(name, value, "patterns")
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidInputError(f"{name}={value!r} holds a value that is not a pattern.")
    return tuple(pattern for pattern in patterns if pattern.strip())


def parse_depth(name: str, value: Any) -> int:
    """Parse a number of levels."""
    try:
        depth = int(str(value))  # of a float, `int` drops the fraction
    except ValueError:
        raise InvalidInputError(f"{name}={value!r} is not a whole number.") from None
    if depth < 0:
        raise InvalidInputError(f"{name}={value!r} is less than zero.")
    return depth


def parse_health(value: Any) -> frozenset[Health]:
    """Parse a set of health words, or a single one."""
    words = [value] if isinstance(value, str) else _parse_list("health", value, "words")
    unknown = sorted(str(word) for word in words if word not in list(Health))
    if unknown or not words:
        raise InvalidInputError(
            f"health={value!r}: {', '.join(unknown) or 'nothing'} is not among "
            f"{', '.join(sorted(Health))}."
        )
    return frozenset(Health(word) for word in words)


def shares_prefix(value: Any) -> bool:
    """Whether the sensor found the experiments below a prefix with experiments in several directories."""
    items = [value] if isinstance(value, str | Mapping) else value or ()
    return any(isinstance(item, Mapping) and item.get("shares_prefix") for item in items)


def parse_addresses(value: Any) -> list[str]:
    """Parse the experiments: one address, several, or the output of the sensor."""
    if value is None or value == "":
        return []
    is_one = isinstance(value, str | Mapping)
    items = [value] if is_one else _parse_list("experiments", value, "addresses")
    addresses: dict[str, None] = {}
    for item in items:
        address = item.get("experiment") if isinstance(item, Mapping) else item
        if not isinstance(address, str) or not address:
            raise InvalidInputError(
                f"experiments: {item!r} is neither an address nor an item of the sensor's output."
            )
        addresses[address] = None
    return list(addresses)


def check_literals(values: Mapping[str, Any], template_fields: Iterable[str]) -> None:
    """Check, when the DAG is parsed, the arguments of an operator that are not computed later.

    Args:
        values: The arguments by name; others than those known here are not checked.
        template_fields: The arguments that Airflow renders when the task runs.

    Raises:
        InvalidInputError: If one of them is not valid. Airflow shows it as an import error of the DAG.
    """
    rendered = frozenset(template_fields)
    for name, value in values.items():
        is_keyed = name == "trainable" and isinstance(value, Mapping)
        if name in _CODE:
            for code in _codes(value) if is_keyed else [value]:
                _refuse_objects(name, code)
        if name not in _PARSERS:
            continue
        if is_keyed:  # a template in one entry must not hide what is wrong with another
            value = {key: item for key, item in value.items() if not is_computed(item)} or value
        if not is_computed(value):
            _PARSERS[name](name, value)
        elif name not in rendered:
            raise InvalidInputError(
                f"{name}={value!r}: Airflow does not render a template in this argument. Give a value."
            )


def is_computed(value: Any) -> bool:
    """Whether Airflow computes a value when the task runs: a template, or another task's output."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, list | tuple | set | frozenset):
        return any(is_computed(item) for item in value)
    if isinstance(value, Mapping):
        return any(is_computed(item) for item in value.values())
    if isinstance(value, os.PathLike):
        return False
    return callable(value) or hasattr(value, "resolve")


def _parse_switch(name: str, value: Any) -> None:
    """Refuse a text: Airflow does not render these arguments, and every text would count as true."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name}={value!r} is neither True nor False.")


def _refuse_objects(name: str, value: Any) -> None:
    """Refuse code in the place of its name: a DAG is stored as text, and a runner imports the code."""
    is_output = not callable(value) and is_computed(value) and hasattr(value, "resolve")
    if value is None or isinstance(value, str) or is_output:
        return
    module, attribute = getattr(value, "__module__", ""), getattr(value, "__qualname__", "<")
    is_importable = "<" not in attribute and not str(module).startswith(("unusual_prefix_", "__"))
    place = f"{module}:{attribute}" if is_importable else "package.module:attribute"
    kind = "code" if callable(value) else f"an object of {type(value).__name__}"
    raise InvalidInputError(
        f"{name}={reprlib.repr(value)} is {kind}, but the runner imports the code by its name. Put it "
        "into a module that can be imported where the trials run, and give its place as text: "
        f"{name}={place!r}."
    )


def _codes(recipes: Mapping[str, Any]) -> list[Any]:
    """Return the code in all recipes of a mapping."""
    records = (item if isinstance(item, Mapping) else {"": item} for item in recipes.values())
    return [record[key] for record in records for key in ("", *_CODE) if key in record]


def parse_on_unknown(name: str, value: Any) -> bool:
    """Return whether an experiment is refused that no trainable is given for: `skip` or `fail`."""
    if value not in (SKIP_UNKNOWN, _FAIL_UNKNOWN):
        raise InvalidInputError(f"{name}={value!r} is neither 'skip' nor 'fail'.")
    return bool(value == _FAIL_UNKNOWN)


def _parse_trainable(name: str, value: Any) -> None:
    if isinstance(value, str) and not value.strip():  # a plan may do without any
        raise InvalidInputError(
            f"{name}={value!r} names no trainable. Give 'package.module:attribute', or a name that is "
            "registered with Tune."
        )
    Recipes.parse(value)


def _parse_list(name: str, value: Any, of: str) -> list[Any]:
    """Return the items of a list, or of another collection without keys."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidInputError(f"{name}={value!r} is not a list of {of}.")
    return list(value)


def _parse_imports(name: str, value: Any) -> None:
    if not all(isinstance(module, str) for module in _parse_list(name, value, "module names")):
        raise InvalidInputError(f"{name}={value!r} holds a value that is not the name of a module.")


def _parse_name(name: str, value: Any) -> None:
    if not isinstance(value, str | None):
        raise InvalidInputError(f"{name}={value!r} is not text.")


def _parse_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping | None):
        raise InvalidInputError(f"{name}={value!r} is not a mapping.")


def _parse_launcher(name: str, value: Any) -> None:
    if value not in list(LauncherName):
        raise InvalidInputError(f"{name}={value!r} is not one of {', '.join(LauncherName)}.")


def _parse_resume_config(name: str, value: Any) -> None:
    _parse_mapping(name, value)
    ResumeFlags.parse(dict(value or {}))


_Parser = Callable[[str, Any], object]
_PARSERS: dict[str, _Parser] = {
    **dict.fromkeys(("wait", "deferrable", "use_index", "repeat"), _parse_switch),
    **dict.fromkeys((*RESUME_FLAGS, *SWITCHES), parse_bool),
    **dict.fromkeys(("stale_after", "poll_interval"), parse_span),
    **dict.fromkeys(("include", "exclude"), parse_globs),
    "check_timeout": parse_limit,
    "health": lambda _, value: parse_health(value),
    "imports": _parse_imports,
    "launcher": _parse_launcher,
    "lease_ttl": parse_lease_ttl,
    **dict.fromkeys(_NAMES, _parse_name),
    **dict.fromkeys(("env", "runtime_env"), _parse_mapping),
    **dict.fromkeys(("max_attempts", "max_trials"), parse_count),
    "max_depth": parse_depth,
    "max_duration": parse_optional_limit,
    "max_memory": parse_bytes,
    "only": lambda name, value: value is None or parse_only(name, value),
    "resume_config": _parse_resume_config,
    "trials": lambda name, value: value is None or parse_ids(name, value),
    "strategy": lambda _, value: PlanChoices(strategy=value),
    "trainable": _parse_trainable,
    "recipes": lambda _, value: parse_modules(value),
    "on_unknown": parse_on_unknown,
    "until": parse_time_of_day,
}
"""How a literal is checked, by the name that the argument has in all operators."""
