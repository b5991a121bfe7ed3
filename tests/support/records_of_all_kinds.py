"""One of each kind of record that is read from storage, with every field filled, and who reads it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from airflow_tune_restore.exceptions import RecordUnreadableError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.planned import PlannedExperiment, read_planned
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import (
    ProgressTail,
    RunnerExit,
    RunnerOutcome,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.commit_record import CommitRecord, read_commit_record
from airflow_tune_restore.restore.ledger import FailedAttempt, History, Ledger, read_ledger
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.record_json import encode
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import FAILURE, start_night

AT = "2026-11-28T19:00:00+00:00"
COMMITTED = STATE_NAME.replace(".json", "_r000001.json")


@dataclass(frozen=True)
class Kind:
    """A kind of record.

    Args:
        type: What it is read as.
        key: Where it lies, of restore `r1`, trial `bad`, attempt 1.
        key_name: The function of `layout` that names it; "" for a constant.
        sample: Makes its plain values.
        read: Reads it; raises RecordUnreadableError if it makes no sense.
        open_dicts: Names of fields that hold dicts with any keys.
    """

    type: Any
    key: str
    key_name: str
    sample: Callable[[], dict[str, Any]]
    read: Callable[[ObjectStore], Any]
    open_dicts: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.type.__name__


def sample_plan() -> dict[str, Any]:
    store = MemoryStore()
    store.put(STATE_NAME, make_state([make_row("bad", status="ERROR"), make_row("done")]))
    made = json.loads(start_night(store).to_json())
    made["choices"]["max_attempts"] = 3
    return made | {"warnings": ["odd"], "own_tasks": 1, "searcher_lost": "gone", "metric": "score",
                   "mode": "max", "samples_left": 2}  # fmt: skip


def sample_planned() -> dict[str, Any]:
    trial = {"trial_id": "bad", "action": "restart", "checkpoint": "checkpoint_000001",
             "iteration": 3, "new_trial_id": "new"}  # fmt: skip
    return {"base": {"name": STATE_NAME}, "trials": [trial], "continues_search": True,
            "samples_left": 2, "searcher_lost": "gone", "own_tasks": 1}  # fmt: skip


def sample_request() -> dict[str, Any]:
    return asdict(
        RunnerRequest(
            experiment="memory:", restore_id="r1", trial_id="bad", attempt=1, trainable="m:train",
            trainable_name="train", action="resume", checkpoint="checkpoint_000001", iteration=3,
            new_trial_id="new", param_space="m:space", imports=["m"], address="auto",
            resources={"CPU": 1.0, "memory": 1e9}, runtime_env={"pip": ["x"]}, search_alg="m:alg",
            entrypoint="python sweep.py",
            pause_at="2099-12-01T06:00:00+00:00", nonce="n",
        )
    )  # fmt: skip


def sample_outcome() -> dict[str, Any]:
    return asdict(
        RunnerOutcome(
            restore_id="r1", trial_id="bad", attempt=1, result="failed", status="ERROR",
            final_trial_id="bad", iteration=3, metrics={"score": 0.5, "name": "a"},
            resources={"CPU": 2.0}, started_at=AT, ended_at=AT, ray_version="2.60.0", **FAILURE,
        )
    )  # fmt: skip


def sample_progress() -> dict[str, Any]:
    reports = [RunnerProgress(trial_id="bad", iteration=n, metrics={"score": 0.5}) for n in (3, 4)]
    return asdict(ProgressTail(first=0, reports=reports))


def sample_end() -> dict[str, Any]:
    return asdict(RunnerExit(exit_code=137, message="Killed", ended_at=AT))


def sample_commit() -> dict[str, Any]:
    record = CommitRecord(
        state_file=COMMITTED, start_time=2e9, attempts={"bad": 1}, sha256="a", undone_at=AT
    )
    return json.loads(encode(record))


def sample_ledger() -> dict[str, Any]:
    failed = FailedAttempt(
        restore_id="r0", attempt=1, cause="trainable", type="ValueError", message="no",
        place=FAILURE["place"], iteration=3, ended_at=AT, memory=1e9,
    )  # fmt: skip
    history = History(failures=(failed,), released=(failed,), released_at=AT, quarantined="twice")
    return json.loads(encode(Ledger(trials={"bad": history})))


def _read_request(store: ObjectStore) -> RunnerRequest:
    return read_record(store, layout.request_key("r1", "bad", 1), RunnerRequest.from_json)


def _read_ledger(store: ObjectStore) -> Ledger:
    found, warning = read_ledger(store)
    if warning:
        raise RecordUnreadableError(store.uri, layout.LEDGER, warning)
    return found


_OF_ATTEMPT = ("r1", "bad", 1)

RECORDS = [
    Kind(RestorePlan, layout.plan_key("r1"), "plan_key", sample_plan,
         lambda store: read_plan(store, "r1"), frozenset({"resources", "parameters", "failures"})),
    Kind(PlannedExperiment, layout.plan_key("r1"), "plan_key", sample_planned,
         lambda store: read_planned(store, "r1")),
    Kind(RunnerRequest, layout.request_key(*_OF_ATTEMPT), "request_key", sample_request,
         _read_request, frozenset({"resources", "runtime_env"})),
    Kind(RunnerOutcome, layout.outcome_key(*_OF_ATTEMPT), "outcome_key", sample_outcome,
         lambda store: AttemptRecords(store, "r1", "bad").outcome(1),
         frozenset({"resources", "metrics"})),
    Kind(ProgressTail, layout.progress_key(*_OF_ATTEMPT), "progress_key", sample_progress,
         lambda store: AttemptRecords(store, "r1", "bad").progress(1), frozenset({"metrics"})),
    Kind(RunnerExit, layout.exit_key(*_OF_ATTEMPT), "exit_key", sample_end,
         lambda store: read_record(store, layout.exit_key(*_OF_ATTEMPT), RunnerExit.from_json)),
    Kind(CommitRecord, layout.commit_key("r1"), "commit_key", sample_commit,
         lambda store: read_commit_record(store, "r1"), frozenset({"attempts"})),
    Kind(Ledger, layout.LEDGER, "", sample_ledger, _read_ledger, frozenset({"trials"})),
]  # fmt: skip
