"""docs/timings.md is complete and right: it is the one place where timings are read side by side."""

import ast
import importlib
import re
from datetime import timedelta

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs" / "timings.md").read_text()
ROWS = dict(re.findall(r"^\| `([\w.]+)` \| ([\w. ]+?) \|", PAGE, re.MULTILINE))
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
NOT_ONE_TIME = {
    "operators.kubernetes.pod_arguments.MOST_SECONDS",  # the largest number that a pod takes
    "triggers.failed_experiment.RECALL_WAITS_SECONDS",  # several
}


def seconds(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number) * UNITS[unit or "s"]


def defined() -> set[str]:
    """Return the module constants that are named or valued as a time."""
    found = set()
    package = ROOT / "airflow_tune_restore"
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if re.fullmatch(r"(?!_)[A-Z_]*SECONDS", name):
                    found.add(f"{module}.{name}")
    return found - NOT_ONE_TIME


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_value_of_its_constant(name):
    module, _, constant = name.rpartition(".")
    value = getattr(importlib.import_module(f"airflow_tune_restore.{module}"), constant)
    value = value.total_seconds() if isinstance(value, timedelta) else value
    assert value == seconds(ROWS[name])


def test_no_constant_is_missing():
    assert defined() - set(ROWS) == set()


def test_a_dead_runner_is_found_before_its_lease_ends():
    at = {name: seconds(text) for name, text in ROWS.items()}
    beat, known_dead = (
        at["runner.heartbeat.BEAT_SECONDS"],
        at["protocol.lease_watch.KNOWN_DEAD_SECONDS"],
    )
    assert 3 * beat < at["protocol.attempts.QUIET_SECONDS"] < at["cli.restore.TTL_SECONDS"]
    assert (
        at["protocol.lease.RENEW_SECONDS"] + at["operators.attempt_task.POLL_SECONDS"] < known_dead
    )
    assert at["runner.heartbeat.BEAT_SECONDS"] < at["protocol.attempts.QUIET_SECONDS"] < known_dead
