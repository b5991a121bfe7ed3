"""Every field of every record read from storage, down to its last item, planted with what it is not.

A record is read, and then all that it holds is what it should be; or it is a `RecordUnreadableError`.
"""

import dataclasses
import json
import math
from typing import Any

import msgspec
import pytest

from airflow_tune_restore.exceptions import RecordUnreadableError
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.protocol import layout, record_fields, request
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.check import CheckAnswer, CheckRequest, ExperimentToCheck
from airflow_tune_restore.protocol.lease_objects import DagRunId
from airflow_tune_restore.protocol.numbers import MAX_COUNT
from airflow_tune_restore.protocol.planned import PlannedState, PlannedTrial
from airflow_tune_restore.protocol.printable import is_printable
from airflow_tune_restore.protocol.request import ProgressTail, RunnerProgress, RunnerRequest
from airflow_tune_restore.restore import commit_record, ledger, plan
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.ledger import Ledger, read_ledger
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.planted import PLANTS, encode, leaves, plant
from tests.support.records_of_all_kinds import RECORDS, Kind


def read(kind: Kind, body: bytes) -> Any:
    store = MemoryStore()
    store.put(kind.key, body)
    return kind.read(store)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("planted", PLANTS)
def test_a_field_that_is_something_else_is_put_right_or_refuses_the_record(kind, planted):
    sample = kind.sample()
    assert read(kind, encode(sample))
    for path in leaves(sample):
        found, refusal = _read_or_refusal(kind, encode(plant(sample, path, PLANTS[planted])))
        assert is_printable(refusal)
        assert len(refusal) < 1000
        _check_types(found)
        for text in _shown_texts(found):
            assert all(is_printable(line) for line in text.split("\n")), (path, ascii(text[:99]))
            assert len(text) <= 4000, (path, text[:99])


def _read_or_refusal(kind: Kind, body: bytes) -> tuple[Any, str]:
    try:
        return read(kind, body), ""
    except RecordUnreadableError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.name)
def test_what_a_newer_version_has_added_is_ignored(kind):
    sample = kind.sample()
    newer = json.loads(json.dumps(sample))
    for path in list(leaves(sample)):
        place = newer
        for step in path:
            place = place[step]
        if isinstance(place, dict) and path[-1] not in kind.open_dicts:
            place["added_later"] = {"by": ["somebody"]}
    newer["added_later"] = [1]
    assert read(kind, json.dumps(newer).encode()) == read(kind, encode(sample))


def test_every_kind_of_record_is_planted_and_every_field_of_it():
    """A new record, or a new field, must be in `records_of_all_kinds`."""
    known = {kind.type for kind in RECORDS}
    inside = {RunnerProgress, PlannedState, PlannedTrial, DagRunId}  # in a tail, a plan and a claim
    in_pipes = {CheckRequest, ExperimentToCheck, CheckAnswer}  # of a check, never in a store
    assert known >= set(record_fields.Record.__subclasses__()) - inside - in_pipes
    assert known >= {plan.RestorePlan, commit_record.CommitRecord, ledger.Ledger}
    for kind in RECORDS:
        _check_complete(kind.type, kind.sample())


def _check_complete(kind: Any, sample: dict[str, Any]) -> None:
    if dataclasses.is_dataclass(kind):
        names = {field.name for field in dataclasses.fields(kind)}
    else:
        names = {field.name for field in msgspec.structs.fields(kind)}
    assert set(sample) == names, kind


def test_every_key_of_ours_is_a_record_that_is_planted_or_read_otherwise():
    otherwise = {
        # ours, and looked at for being there, or for having changed
        "heartbeat_key", "stop_key", "stopped_key", "lease_heartbeat_key", "lease_release_key",
        "lease_claim_key", "lease_dag_run_key",  # experiments.claims: what makes no sense counts as empty
        "seed_key", "snapshot_key", "results_backup_key",  # Ray's own formats
    }  # fmt: skip
    keys = {name for name in vars(layout) if name.endswith("_key")}
    assert keys == otherwise | {kind.key_name for kind in RECORDS if kind.key_name}


def test_the_statuses_are_rays():
    assert {status.value for status in TrialStatus} == record_fields.STATUSES


def test_a_trial_with_a_report_that_is_none_is_unreadable_and_no_attribute_error():
    store = MemoryStore()
    body = {"first": 0, "reports": [{"trial_id": "t", "iteration": 1, "metrics": [1]}]}
    store.put(layout.progress_key("r1", "t", 1), json.dumps(body).encode())
    with pytest.raises(
        RecordUnreadableError, match="metrics of a RunnerProgress: it cannot be a list"
    ):
        AttemptRecords(store, "r1", "t").progress(1)


def test_a_tail_of_more_reports_than_anybody_keeps_is_refused():
    report = RunnerProgress(trial_id="t", iteration=1, metrics={})
    tail = ProgressTail(first=0, reports=[report] * (request.MOST_REPORTS + 1))
    with pytest.raises(ValueError, match="at most"):
        ProgressTail.from_json(tail.to_json())


def test_metrics_are_as_many_and_as_long_as_can_be_shown():
    metrics = {f"\x1b[31mm{n}" * 900: "y" * 900 for n in range(90)} | {"big": 10**4000}
    read_back = RunnerProgress.from_json(
        RunnerProgress(trial_id="t", iteration=1, metrics=metrics).to_json()
    )
    assert len(read_back.metrics) == record_fields.MOST_METRICS
    assert len(read_back.to_json()) < 30_000
    assert all(map(is_printable, read_back.metrics))
    assert len(describe_line(read_back.to_line(), None)) <= 400


@pytest.mark.parametrize("number", [0, -1, 10**15, 10**4000])
def test_a_commit_record_names_attempts_that_there_can_be(number):
    store = MemoryStore()
    body = {"state_file": "", "start_time": 1.0, "attempts": {"bad": number}}
    store.put(layout.commit_key("r1"), json.dumps(body).encode())
    with pytest.raises(RecordUnreadableError):
        read_commit_record(store, "r1")


def test_a_failure_in_the_ledger_is_told_in_one_short_line():
    store = MemoryStore()
    failure = {"restore_id": "r", "attempt": 1, "cause": "trainable", "type": "\x1b[31mE" * 9000,
               "place": "a.py:1\n::group::", "message": "\x9b" * 900_000}  # fmt: skip
    body = {"trials": {"bad": {"failures": [failure] * 2}, "\x1b[31m": {}}}
    store.put(layout.LEDGER, json.dumps(body).encode())
    found, warning = read_ledger(store)
    assert (list(found.trials), warning) == (["bad"], "")
    (why,) = found.quarantined(None).values()
    assert is_printable(why)
    assert len(why) < 600


def _check_types(value: Any) -> None:
    """Check that all numbers of a record are numbers of strict JSON."""
    if isinstance(value, bool | str | bytes | None):
        return
    if isinstance(value, int):
        assert abs(value) <= 1.8e308
    elif isinstance(value, float):
        return
    elif isinstance(value, dict):
        for item in value.items():
            for part in item:
                _check_types(part)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_types(item)
    else:
        for name, item in _fields(value):
            if name in ("attempt", "iteration", "first", "schema"):
                assert type(item) is int
                assert 0 <= item <= MAX_COUNT
            if name in ("resources", "metrics", "attempts"):
                assert isinstance(item, dict)
            if name == "resources":
                assert all(type(n) in (int, float) and math.isfinite(n) for n in item.values())
            _check_types(item)


def _fields(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, msgspec.Struct):
        return list(msgspec.structs.asdict(value).items())
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]


def _shown_texts(value: Any, name: str = "") -> list[str]:
    """Return all texts of a record, except those that are passed on unchanged."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in _shown_texts(part)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _shown_texts(item)]
    if not (isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value)):
        return []
    return [
        text
        for name, item in _fields(value)
        if name not in HANDED_ON.get(type(value), ())
        for text in _shown_texts(item)
    ]


HANDED_ON: dict[Any, frozenset[str]] = {
    RunnerRequest: frozenset(
        "experiment trainable trainable_name checkpoint param_space search_alg imports address "
        "runtime_env entrypoint nonce".split()
    ),
    plan.RestorePlan: frozenset({"experiment", "trainable_name", "metric", "mode"}),
    plan.TrialPlan: frozenset({"trial_dir", "checkpoint"}),
    PlannedTrial: frozenset({"checkpoint"}),
    plan.StateFile: frozenset({"sha256"}),
    commit_record.CommitRecord: frozenset({"sha256", "attempts"}),
    Ledger: frozenset(),
}
"""Fields that name something, or are looked up: they are made printable where shown (test_sinks)."""
