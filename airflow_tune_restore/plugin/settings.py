"""The section `[tune_restore]` of Airflow's configuration."""

import configparser
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.protocol.names import is_safe_name
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.version_compat import CONFIG_ERRORS, conf

SECTION = "tune_restore"
DEFAULT_RECOVERY_DAG = "nightly_recovery"
DEFAULT_CACHE = 30
DEFAULT_STALE_AFTER = 1800
_EXAMPLE = '{"team sweeps": "s3://connection_id@bucket/path"}'
_NOTHING = (
    f"No prefix is configured. Set prefixes in the section [{SECTION}] of Airflow's configuration, for "
    f"example to {_EXAMPLE}, and restart the api-server."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration of the page by an administrator.

    Args:
        prefixes: Label to address. The browser names labels only.
        recovery_dag_id: The DAG whose permissions count, and that "restore now" starts.
        cache_seconds: How long a list of experiments is kept.
        stale_after: Seconds of silence after which an experiment counts as dead.
        problem: Why some of it cannot be used, and what to do; "" if all can.
    """

    prefixes: Mapping[str, Address] = field(default_factory=dict)
    recovery_dag_id: str = DEFAULT_RECOVERY_DAG
    cache_seconds: int = DEFAULT_CACHE
    stale_after: int = DEFAULT_STALE_AFTER
    problem: str = ""


def read_settings() -> Settings:
    """Read the configuration. It never raises: what cannot be used is left out, and told by `problem`."""
    problems: list[str] = []
    prefixes = _parse_prefixes(_text("prefixes", "", problems), problems)
    recovery_dag_id = _text("recovery_dag_id", "", problems).strip() or DEFAULT_RECOVERY_DAG
    cache_seconds = _number("cache_seconds", DEFAULT_CACHE, problems)
    stale_after = _number("stale_after", DEFAULT_STALE_AFTER, problems)
    if not prefixes and not problems:
        problems.append(_NOTHING)
    return Settings(
        prefixes=prefixes,
        recovery_dag_id=recovery_dag_id,
        cache_seconds=cache_seconds,
        stale_after=stale_after,
        problem=printable(" ".join(problems), NOTE_LENGTH),
    )


def base_path() -> str:
    """Return the path of `[api] base_url` without a slash at its end: "" or "/af"."""
    try:
        return urlsplit(str(conf.get("api", "base_url", fallback="") or "")).path.rstrip("/")
    except (*CONFIG_ERRORS, ValueError):
        return ""


def _text(key: str, default: str, problems: list[str]) -> str:
    try:
        return str(conf.get(SECTION, key, fallback=default) or "")
    except configparser.InterpolationError:
        problems.append(f"[{SECTION}] {key}: write %% for each % in airflow.cfg.")
    except CONFIG_ERRORS as error:
        problems.append(f"[{SECTION}] {key} cannot be read: {printable(str(error))}")
    return default


def _number(key: str, default: int, problems: list[str]) -> int:
    text = _text(key, "", problems).strip()
    if not text:
        return default
    if text.isascii() and text.isdigit() and len(text) < 10:  # noqa: PLR2004  thirty years
        return int(text)
    problems.append(
        f"[{SECTION}] {key} = {printable(text, 80)} is not a number of seconds; {default} is used."
    )
    return default


def _parse_prefixes(text: str, problems: list[str]) -> dict[str, Address]:
    """Parse the JSON object of labels and addresses. A wrong text is not shown: it may be a secret."""
    if not text.strip():
        return {}
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        problems.append(
            f"[{SECTION}] prefixes is not a JSON object of labels and addresses. Write it like "
            f"{_EXAMPLE}."
        )
        return {}
    found = {}
    for label, address in values.items():
        if not is_safe_name(label.replace("/", " ")) or label != label.strip():
            problems.append(
                f"[{SECTION}] prefixes: {printable(label, 80)!r} is not a label. Give it 1 to 255 "
                "printable characters."
            )
            continue
        try:
            found[label] = Address.parse(address)
        except InvalidInputError as error:
            problems.append(f"[{SECTION}] prefixes, {printable(label, 80)}: {error}")
    return found
