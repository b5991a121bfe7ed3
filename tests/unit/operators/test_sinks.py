"""Whatever storage says: nothing of it leaves us that is escapes, folds of a log, or endless.

One night over an experiment in which every place is planted: logs, XComs, events, errors and commands.
"""

import asyncio
import contextlib
import functools
import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_tune_restore.cli import commands as cli
from airflow_tune_restore.cli import output
from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.exceptions import RecordUnreadableError, TuneRestoreError
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.list_quarantine import ListQuarantineOperator
from airflow_tune_restore.operators.preview_restore import PreviewRestoreOperator
from airflow_tune_restore.operators.release_trial import ReleaseTrialOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.undo_commit import UndoCommitOperator
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.request import PROGRESS_PREFIX
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.triggers import experiment_sensor
from airflow_tune_restore.triggers.experiment_sensor import ExperimentSensorTrigger
from airflow_tune_restore.version_compat import AirflowException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import (
    KILLED,
    STATE_NAME,
    make_experiment,
    make_row,
    make_state,
)
from tests.support.planted import (
    DIGITS,
    LONG,
    MARK,
    PLANTS,
    check_sent,
    check_shown,
    encode,
    leaves,
    plant,
)
from tests.support.records import night
from tests.support.records_of_all_kinds import RECORDS, Kind

BAD = {"status": "ERROR", "error": True, "last_result_time": 3.0}
OLD, NEW = b"\x8c\x05score\x94", b"\x8c\x05\x1b[31m\x94"
"""The metric in tuner.pkl, and an escape of the same length."""


def planted_rows() -> list[list[str]]:
    """Return a row for each field that a row has and each plant: each costs its own trial at most."""
    trial, metadata = make_row("t", **BAD, last_result={"training_iteration": 3, "\x1b[31m": 0.5})
    rows = []
    for part, document in enumerate((json.loads(trial), json.loads(metadata))):
        for path in list(leaves(document)):
            for name, value in PLANTS.items():
                if len(path) > 2 or (path != ("trial_id",) and name not in ("text", "digits")):
                    continue
                documents = [json.loads(trial), json.loads(metadata)]
                documents[0]["trial_id"] = f"t{len(rows)}"
                documents[part] = plant(documents[part], path, value)
                rows.append([encode(document).decode() for document in documents])
    return rows


@functools.cache
def planted_record(kind: Kind) -> bytes:
    """Return a record in which every field is planted that does not refuse it; identity stays."""
    found = kind.sample()
    for path in list(leaves(found)):
        with contextlib.suppress(RecordUnreadableError, KeyError, IndexError, TypeError):
            store = MemoryStore()
            candidate = plant(found, path, LONG)
            store.put(kind.key, encode(candidate))
            kind.read(store)
            if not {"restore_id", "sha256", "base", "experiment"} & set(path):
                found = candidate
    return encode(found)


@dataclass
class Sinks(logging.Handler):
    """All that leaves us."""

    shown: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = object.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        self.shown.append(record.getMessage())

    def step(self, work: Any) -> Any:
        """Do something; an error of ours or of Airflow's is one more text that leaves."""
        try:
            return work()
        except (AirflowException, TuneRestoreError) as error:
            self.shown.append(str(error))
            return None

    def run(self, operator: Any, context: Any = None) -> Any:
        """Execute an operator; what it returns and pushes is sent."""
        context = context or make_context()
        returned = self.step(lambda: operator.execute(context))
        pushed = context["ti"].pushed
        lines = pushed.get("body", "").split("\n")  # a page: the only text of many lines
        for value in (returned, *({**pushed, "body": lines}).values()):
            check_sent(value, trials=10)
        return returned, pushed


@pytest.fixture
def sinks(capfd, monkeypatch):
    found = Sinks()
    # alone: if an earlier test has set up Airflow's logging, logs go to stdout, in front of JSON
    monkeypatch.setattr(logging.getLogger(), "handlers", [found])
    yield found
    for text in found.shown:
        check_shown(text)
    captured = capfd.readouterr()
    for text in (captured.out, captured.err):
        check_shown(text)


def few_rows() -> list[list[str]]:
    return [make_row("bad", **BAD, last_result={"training_iteration": 3, "\x1b[31m": 10**4000}),
            make_row("too", **BAD),
            make_row("done", last_result={"training_iteration": 3, "\x1b[31m": math.nan})]  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    directory = make_experiment(tmp_path / "sweep", few_rows(), total_samples=300)
    tuner = (KILLED / "tuner.pkl").read_bytes()
    assert OLD in tuner
    (directory / "tuner.pkl").write_bytes(tuner.replace(OLD, NEW))
    (directory / f"experiment_state-{MARK.replace('/', '')}.json").write_bytes(b"{")
    (directory / "dir_bad").mkdir()
    result = {"checkpoint_dir_name": LONG, "training_iteration": DIGITS, LONG: LONG}
    (directory / "dir_bad" / "result.json").write_bytes(encode(result) + b"\n")
    (tmp_path / f"sweep{MARK.replace('/', '')}").mkdir()
    make_experiment(tmp_path / "broken", [make_row(MARK, **BAD)])
    return directory


def plant_rows(sweep) -> None:
    (sweep / STATE_NAME).write_bytes(make_state([*few_rows(), *planted_rows()]))


@pytest.fixture
def runner(sweep, launcher, monkeypatch):
    """Leaves what a runner leaves, planted; and prints what a trainable may print."""
    store = open_store(str(sweep))
    progress = {"trial_id": "bad", "iteration": 4, "metrics": {LONG: LONG, MARK: 10**300}}
    launcher.said = (LONG, MARK, PROGRESS_PREFIX + json.dumps(progress), PROGRESS_PREFIX + LONG)

    def leave(request) -> None:
        rows = [make_row(request.trial_id, last_result={"training_iteration": 4, "\x1b[31m": LONG})]
        where = (request.restore_id, request.trial_id, request.attempt)
        store.put(layout.snapshot_key(*where), make_state(rows))
        for kind in RECORDS:
            if "attempts/" in kind.key and kind.key_name != "request_key":
                found = json.loads(planted_record(kind)) | {
                    "restore_id": request.restore_id, "trial_id": request.trial_id,
                    "attempt": request.attempt, "final_trial_id": request.trial_id,
                    "result": launcher.result,
                }  # fmt: skip
                store.put(getattr(layout, kind.key_name)(*where), encode(found))

    launcher.on_start, launcher.result = leave, "failed"
    return launcher


def put(store, kind_name: str, of: str = "r1", **fields: Any) -> None:
    (kind,) = [kind for kind in RECORDS if kind.name == kind_name]
    body = json.loads(planted_record(kind)) | fields
    store.put(kind.key.replace("/r1/", f"/{of}/"), encode(body))


@pytest.mark.parametrize("result", ["finished", "failed", "interrupted", "refused", "fenced"])
def test_a_night_over_planted_storage_shows_nothing_of_it(
    sweep, runner, sinks, monkeypatch, result
):
    runner.result = result
    store = open_store(str(sweep))
    if result == "finished":  # once will do
        plant_rows(sweep)
    put(store, "Ledger")
    claim = {"restore_id": LONG, "holder": LONG, "ttl_seconds": 0}
    store.put(layout.lease_claim_key(1), encode(claim))
    found, _ = sinks.run(
        FailedTuneExperimentSensor(task_id="find", prefix=str(sweep.parent), stale_after=0)
    )
    check_sent(_event(sweep, monkeypatch), trials=10)
    flags = {
        "experiments": found, "resume_errored": True, "stale_after": 0, "strategy": "per_trial"
    }  # fmt: skip
    shown, previewed = sinks.run(PreviewRestoreOperator(task_id="preview", **flags))
    assert shown
    approved = {"approved": shown, "previewed": previewed["outcomes"]}
    plan = BuildRestorePlanOperator(task_id="plan", **flags, **approved)
    sinks.run(plan)  # a claim that is no restore's is settled, or told of
    store.put(layout.lease_release_key(1), b"{}")
    items, pushed = sinks.run(plan)
    assert items
    for item in (items[0], items[-1]):
        for _ in range(2):  # a retry finds the outcome of the first try
            sinks.run(RestoreTrialOperator(task_id="trial", trial=item, trainable="m:train"))
    committed, _ = sinks.run(CommitRestoreOperator(task_id="commit", outcomes=pushed["outcomes"]))
    assert committed
    sinks.step(lambda: ContinueSearchOperator(
        task_id="continue_search", experiment=committed[0], trainable="m:train"
    ).execute(make_context()))  # fmt: skip
    for summary in [sinks.step(lambda: commit_restore(store, pushed["outcomes"][0]["restore_id"]))]:
        for as_json in (False, True):
            output.print_summary(summary, experiment=store.uri, as_json=as_json)


def test_operations_by_hand_over_planted_storage_show_nothing_of_it(sweep, sinks):
    store = open_store(str(sweep))
    for restore_id in ("r1", "r2"):
        night(store, restore_id, error=MARK)
    ledger = json.loads(planted_record(next(k for k in RECORDS if k.name == "Ledger")))
    failed = next(iter(ledger["trials"].values()))
    store.put(
        layout.LEDGER, encode(ledger | {"trials": {"bad": failed, "too": failed, MARK: failed}})
    )
    listed, _ = sinks.run(ListQuarantineOperator(task_id="list", prefix=str(sweep.parent)))
    assert {item["trial_id"] for item in listed} == {"bad", "too"}
    for trials in (["bad", "too"], [MARK], [LONG]):
        sinks.run(ReleaseTrialOperator(task_id="release", experiment=str(sweep), trials=trials))
    for confirm in ("sweep", MARK):
        sinks.run(UndoCommitOperator(task_id="undo", experiment=str(sweep), confirm=confirm))


def _event(sweep, monkeypatch) -> dict[str, Any]:
    trigger = ExperimentSensorTrigger(
        prefix=str(sweep.parent), health=["errored", "interrupted"], stale_after_seconds=0.0,
        poke_interval=0.1, include=[], exclude=[], max_depth=4, use_index=False, ray_conn_id=None,
    )  # fmt: skip

    monkeypatch.setattr(experiment_sensor, "FIRST_EVENT_SECONDS", 0.0)

    async def first():
        return await anext(trigger.run())

    return asyncio.run(first()).payload


@pytest.mark.parametrize(
    "kind", [kind for kind in RECORDS if kind.key_name], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("body", ["planted", "garbage"])
def test_a_task_that_finds_a_planted_record_shows_nothing_of_it(sweep, runner, sinks, kind, body):
    plan = BuildRestorePlanOperator(
        task_id="plan",
        experiments=str(sweep),
        resume_errored=True,
        stale_after=0,
        strategy="per_trial",
    )
    items, pushed = sinks.run(plan)
    (item,) = [item for item in items if item["trial_id"] == "bad"]
    store = open_store(str(sweep))
    if body == "garbage":
        key = kind.key.replace("/r1/", f"/{item['restore_id']}/")
        store.put(key, LONG.encode())
    elif kind.name != "RestorePlan":
        put(store, kind.name, item["restore_id"])
    else:
        made = json.loads(store.get(layout.plan_key(item["restore_id"])))
        put(store, kind.name, item["restore_id"], **{
            name: made[name] for name in ("restore_id", "experiment", "base", "trials", "choices")
        })  # fmt: skip
    for _ in range(2):
        sinks.run(RestoreTrialOperator(task_id="trial", trial=item, trainable="m:train"))
    sinks.run(CommitRestoreOperator(task_id="commit", outcomes=pushed["outcomes"]))
    sinks.run(plan)


@pytest.mark.parametrize(
    "command",
    ["scan", "scan --json", "scan --explain", "scan --explain --json", "plan", "plan --json",
     "plan --resume-errored", "plan --resume-errored --json", "release bad", "release bad --json",
     "undo --yes", "undo --yes --json"],
)  # fmt: skip
def test_a_command_shows_nothing_of_planted_storage(sweep, sinks, capfd, monkeypatch, command):
    store = open_store(str(sweep))
    plant_rows(sweep)
    put(store, "Ledger")
    name, *options = command.split()
    if name == "undo":
        committed = STATE_NAME.replace(".json", "_r000001.json")
        store.put(committed, store.get(STATE_NAME))
        record = {"state_file": committed, "start_time": 1.0, "attempts": {}, "is_done": True}
        store.put(layout.commit_key(MARK), encode(record))
        (sweep / ".tune_restore" / "r\x1b[31m").mkdir()
    monkeypatch.setattr("sys.argv", ["tune-restore", name, str(sweep), *options])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    said = capfd.readouterr()
    assert said.out or said.err
    check_shown(said.err)
    check_shown(said.out)
    if "--json" in options and not ended.value.code:
        check_sent(json.loads(said.out), trials=200)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_plan_that_names_what_cannot_be_shown_is_printed_all_the_same(sinks, as_json):
    (kind,) = [kind for kind in RECORDS if kind.name == "RestorePlan"]
    store = MemoryStore()
    body = json.loads(planted_record(kind))
    body["trials"][0]["checkpoint"] = f"checkpoint_{MARK}"
    store.put(kind.key, encode(body))
    output.print_plan(kind.read(store), as_json=as_json)


def test_what_a_run_prints_and_how_it_goes_is_shown_on_a_terminal(sinks):
    with Progress(quiet=False) as progress:
        progress.say(LONG)
    del progress
    with pytest.raises(TuneRestoreError) as lost:
        lease.check_held(_leased(), "r1")
    sinks.shown.append(str(lost.value))


def _leased() -> MemoryStore:
    store = MemoryStore()
    store.put(layout.lease_claim_key(1), encode({"restore_id": LONG, "holder": LONG}))
    return store
