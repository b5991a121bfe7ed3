"""Checks the literal arguments of operators when a DAG is parsed. `arguments` parses all in the task."""

import json
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from airflow_tune_restore import arguments
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.recipes import Recipes, parse_modules

_NAMES = ("python", "runner_user", "ray_address", "ray_conn_id", "storage_conn_id")
_CODE = ("trainable", "param_space", "search_alg")


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
            for label, code in _codes(value) if is_keyed else [(name, value)]:
                _refuse_objects(label, code)
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


def _codes(recipes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the code in all recipes of a mapping, each with what its user calls it."""
    for key, item in recipes.items():
        place = f"trainable[{json.dumps(str(key))}]"
        if isinstance(item, Mapping):
            yield from ((f'{place}["{name}"]', item[name]) for name in _CODE if name in item)
        else:
            yield place, item


def _parse_trainable(name: str, value: Any) -> None:
    if isinstance(value, str) and not value.strip():  # a plan may do without any
        raise InvalidInputError(
            f"{name}={value!r} names no trainable. Give 'package.module:attribute', or a name that is "
            "registered with Tune."
        )
    Recipes.parse(arguments.parse_trainable(name, value))


def _parse_imports(name: str, value: Any) -> None:
    if not all(
        isinstance(module, str) for module in arguments.parse_list(name, value, "module names")
    ):
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
    **dict.fromkeys(
        ("wait", "deferrable", "use_index", "repeat", "require_approval"), _parse_switch
    ),
    **dict.fromkeys((*arguments.RESUME_FLAGS, *arguments.SWITCHES), arguments.parse_bool),
    **dict.fromkeys(("stale_after", "poll_interval"), arguments.parse_span),
    **dict.fromkeys(("include", "exclude"), arguments.parse_globs),
    "approval_timeout": arguments.parse_optional_limit,
    "check_timeout": arguments.parse_limit,
    "entrypoint": arguments.parse_entrypoint,
    "health": lambda _, value: arguments.parse_health(value),
    "imports": _parse_imports,
    "launcher": _parse_launcher,
    "lease_ttl": arguments.parse_lease_ttl,
    **dict.fromkeys(_NAMES, _parse_name),
    **dict.fromkeys(("env", "runtime_env"), _parse_mapping),
    **dict.fromkeys(("max_attempts", "max_trials"), arguments.parse_count),
    "max_depth": arguments.parse_depth,
    "max_duration": arguments.parse_optional_limit,
    "max_memory": arguments.parse_bytes,
    "only": lambda name, value: value is None or arguments.parse_only(name, value),
    "resume_config": _parse_resume_config,
    "trials": lambda name, value: value is None or arguments.parse_ids(name, value),
    "strategy": lambda _, value: PlanChoices(strategy=value),
    "trainable": _parse_trainable,
    "recipes": lambda _, value: parse_modules(value),
    "on_unknown": arguments.parse_on_unknown,
    "until": arguments.parse_time_of_day,
}
"""How a literal is checked, by the name that the argument has in all operators."""
