"""Checks `executor_config` of a task: what its job asks of the cluster, and its runtime_env.

    executor_config={"num_cpus": 2, "num_gpus": 1, "memory": 4 * 1024**3, "resources": {"spot": 1}}

The job of a task that names a `label_selector` is refused by a Ray older than 2.54, whose
`JobSubmitRequest` lacks that field.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.arguments import parse_bytes
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.executors.runtime_env import merge, parse_runtime_env
from airflow_tune_restore.protocol.names import is_text
from airflow_tune_restore.protocol.printable import printable

if TYPE_CHECKING:
    from airflow_tune_restore.executors.settings import ExecutorSettings

MOST_BYTES = 1_000_000
"""Of what a task asks for, as JSON. The agent of a Ray node (2.60) takes 1 MiB, the default of aiohttp.

It answers HTTP 500 to more, as to faults that pass. So the job would be submitted again and again.
"""

_OWN_KEYS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""Ray's names of resources that have a key of their own; Ray refuses them in `resources`."""


def parse_executor_config(
    executor_config: Mapping[str, Any] | None, settings: "ExecutorSettings"
) -> dict[str, Any]:
    """Return the fields of Ray's `JobSubmitRequest` (2.60) for a task: `entrypoint_*` and `runtime_env`.

    Its runtime_env is put over that of the section (`runtime_env.merge`). What is None counts as absent.

    Raises:
        InvalidInputError: If a key is unknown, or a value is not valid.
    """
    given = {} if executor_config is None else executor_config
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"executor_config is not a dict with the keys {_KEYS}.")
    unknown = [printable(str(key), 80) for key in given if key not in _PARSERS]
    if "pod_override" in unknown:
        raise InvalidInputError(
            "executor_config has the key pod_override, which is for KubernetesExecutor. RayExecutor "
            f"knows {_KEYS}. Use those, or set executor= of the task to another executor."
        )
    if unknown:
        raise InvalidInputError(
            f"executor_config has the unknown key {', '.join(unknown)}. RayExecutor knows {_KEYS}."
        )
    fields = {
        key: _PARSERS[key](f"executor_config[{key!r}]", value)
        for key, value in given.items()
        if value is not None
    }
    runtime_env = merge(settings.runtime_env, fields.pop("runtime_env", {}))
    asked = {
        "entrypoint_num_cpus": settings.num_cpus,
        **{f"entrypoint_{key}": value for key, value in fields.items()},
        "runtime_env": runtime_env,
    }
    size = len(json.dumps(asked))
    if size > MOST_BYTES:
        raise InvalidInputError(
            f"executor_config, with the runtime_env of [ray_executor], is {size:,} bytes long; Ray takes "
            f"{MOST_BYTES:,}. Put large values into a file of the image, or of py_modules."
        )
    return asked


def _parse_amount(name: str, value: Any) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            return float(value)
    except OverflowError:
        pass
    raise InvalidInputError(
        f"{name} is {_shown(value)}, which is not an amount: 0 or more is needed."
    )


def _parse_memory(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise InvalidInputError(f"{name} is {value}, which is not a number of bytes.")
    return int(parse_bytes(name, value))


def _parse_resources(name: str, value: Any) -> dict[str, float]:
    _check_names(name, value, '{"spot": 1}')
    for own, key in _OWN_KEYS.items():
        if own in value:
            raise InvalidInputError(
                f"{name} has {own}. Use the key {key} of executor_config for it."
            )
    return {key: _parse_amount(f"{name}[{key!r}]", amount) for key, amount in value.items()}


def _parse_labels(name: str, value: Any) -> dict[str, str]:
    _check_names(name, value, '{"market-type": "spot"}')
    for key, label in value.items():
        if not (isinstance(label, str) and is_text(label)):
            raise InvalidInputError(f"{name}[{key!r}] is {_shown(label)}, which is not a text.")
    return dict(value)


def _check_names(name: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and is_text(k) for k in value):
        raise InvalidInputError(
            f"{name} is not a dict with texts as keys. Write it like {example}."
        )


def _shown(value: Any) -> str:
    return printable(repr(value), 80)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "num_cpus": _parse_amount,
    "num_gpus": _parse_amount,
    "memory": _parse_memory,
    "resources": _parse_resources,
    "label_selector": _parse_labels,
    "runtime_env": parse_runtime_env,
}
_KEYS = ", ".join(_PARSERS)
