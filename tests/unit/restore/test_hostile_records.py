"""Records replaced by an attacker who may write to the bucket: an error, never a wrong commit."""

import json
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    LeaseHeldError,
    RecordUnreadableError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import attempts, layout, lease, lease_objects
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import (
    PROGRESS_PREFIX,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.runner.tune.result_files import Start, prepare_results
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import Attempt, leave_attempt, make_outcome, start_night

ROWS = [make_row("done"), make_row("bad", status="ERROR")]
OUTCOME = layout.outcome_key("r1", "bad", 1)


@pytest.fixture
def store():
    made = MemoryStore()
    made.put(STATE_NAME, make_state(ROWS))
    plan = start_night(made)
    leave_attempt(made, plan, "bad", make_row("bad", last_result={"training_iteration": 6}))
    return made


def outcome(**fields):
    return make_outcome(Attempt("r1", "bad"), **fields)


GARBAGE = [b"", b"{}", b"[]", b"null", b"[" * 50_000, b"\xff\xfe", b'{"result": 7}', b"9" * 5000]


@pytest.mark.parametrize("body", GARBAGE)
@pytest.mark.parametrize("key", [layout.plan_key("r1"), layout.commit_key("r1")])
def test_garbage_in_the_place_of_a_record_is_named_and_nothing_is_committed(store, key, body):
    store.put(key, body)
    with pytest.raises(RecordUnreadableError, match=key.rpartition("/")[2]):
        commit_restore(store, "r1")
    assert [e.name for e in store.list_dir() if layout.is_state_file(e.name)] == [STATE_NAME]


@pytest.mark.parametrize("body", GARBAGE)
def test_an_outcome_nobody_understands_is_told_of_and_holds_up_nothing(store, body):
    store.put(OUTCOME, body)
    with pytest.raises(RecordUnreadableError, match="outcome"):
        AttemptRecords(store, "r1", "bad").outcome()
    summary = commit_restore(store, "r1")
    assert summary.state_file is not None
    assert (
        "outcome.json is not a valid record" in {c.trial_id: c.note for c in summary.changes}["bad"]
    )
    assert lease.acquire(store, restore_id="r2", holder="the next").epoch == 2


@pytest.mark.parametrize("key", [layout.plan_key("r1"), layout.commit_key("r1")])
def test_a_record_is_not_read_beyond_its_limit(store, key):
    store.put(key, b" " * (layout.MAX_PLAN_BYTES + 1))
    with pytest.raises(RecordUnreadableError, match=r"more than.*delete it"):
        commit_restore(store, "r1")


@pytest.mark.parametrize(
    "body", [b"garbage", b"[1]", b"\xff", b" " * (layout.MAX_STATE_BYTES // 2)], ids=len
)
@pytest.mark.parametrize(
    "name", ["outcome", "end", "heartbeat", "state", "request", "stopped", "progress"]
)
def test_a_bad_record_of_one_attempt_costs_that_attempt(store, name, body, monkeypatch):
    """A commit that failed at it would fail at every retry, and its trials would never be committed."""
    monkeypatch.setattr(attempts, "QUIET_SECONDS", 0.1)
    store.put(OUTCOME.replace("outcome", name), body)
    if name == "end":
        store.delete(OUTCOME)  # only then is it read
        store.put(OUTCOME.replace("outcome", "heartbeat"), b"{}")
    summary = commit_restore(store, "r1")
    took = {change.trial_id for change in summary.changes if change.iteration_after == 6}
    assert took == (set() if name == "state" else {"bad"})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("trials", 0, "trial_id"), "../../x"),
        (("trials", 0, "trial_dir"), "/etc"),
        (("trials", 0, "checkpoint"), ".."),
        (("trials", 0, "new_trial_id"), "a\nb"),
        (("trials", 0, "trial_id"), "somebody else"),
        (("base", "name"), "../other/experiment_state-1.json"),
        (("base", "name"), "tuner.pkl"),
        (("restore_id",), "r2"),
        (("trainable_name",), "x\0"),
    ],
)
def test_a_plan_that_names_something_outside_is_refused(store, path, value):
    plan = json.loads(store.get(layout.plan_key("r1")))
    place = plan
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    store.put(layout.plan_key("r1"), json.dumps(plan).encode())
    with pytest.raises(RecordUnreadableError):
        commit_restore(store, "r1")


def test_a_plan_that_leaves_a_trial_out_is_refused(store):
    plan = json.loads(store.get(layout.plan_key("r1")))
    plan["trials"].pop()
    store.put(layout.plan_key("r1"), json.dumps(plan).encode())
    with pytest.raises(RecordUnreadableError, match="not those of"):
        commit_restore(store, "r1")


@pytest.mark.parametrize(
    "name", ["../x_r000001.json", "tuner.pkl", STATE_NAME, "experiment_state-a/b_r000001.json"]
)
def test_a_commit_record_cannot_choose_what_is_written(store, name):
    body = {"state_file": name, "start_time": 1.0, "attempts": {"bad": 1}}
    store.put(layout.commit_key("r1"), json.dumps(body).encode())
    before = dict(store._objects)
    with pytest.raises(RecordUnreadableError, match="is not the name of a committed state"):
        commit_restore(store, "r1")
    assert store._objects == before


def test_a_commit_record_cannot_hide_what_is_committed(store):
    body = {"state_file": "experiment_state-2025-01-01_00-00-00_r000001.json", "start_time": 1.0}
    store.put(layout.commit_key("r1"), json.dumps(body | {"attempts": {"bad": 1}}).encode())
    with pytest.raises(RecordUnreadableError, match="does not sort after"):
        commit_restore(store, "r1")


def test_a_state_whose_driver_started_at_infinity_can_be_restored_and_committed():
    store = MemoryStore()
    store.put(STATE_NAME, make_state(ROWS, start_time=math.inf))
    start_night(store, flags=ResumeFlags(unfinished="skip", errored="resume"))
    assert commit_restore(store, "r1") == commit_restore(store, "r1")


@pytest.mark.parametrize("name", ["²", "٣", "9" * 5000, "99999999999999999999", "one"])
def test_odd_names_beside_attempts_and_claims_are_none(store, name):
    store.put(f"{layout.attempts_dir('r1', 'bad')}/{name}/request.json", b"{}")
    store.put(f"{layout.LEASE}/{name}.claim.json", b"{}")
    assert AttemptRecords(store, "r1", "bad").numbers() == [1]
    assert lease.check_held(store, "r1").epoch == 1


def test_the_last_number_there_is_ends_in_words_and_not_in_a_loop(store):
    last = "9" * 15
    store.put(f"{layout.attempts_dir('r1', 'bad')}/{last}/request.json", b"{}")
    with pytest.raises(RecordUnreadableError, match="attempt numbers are exhausted"):
        claim_attempt(store, read_plan(store, "r1"), "bad", RunnerSettings(trainable="m:train"))
    store.put(f"{layout.LEASE}/{last}.claim.json", b"{}")
    store.put(f"{layout.LEASE}/{last}.release.json", b"{}")
    with pytest.raises(RecordUnreadableError, match="numbers are exhausted"):
        lease.acquire(store, restore_id="r2", holder="another")


@pytest.mark.parametrize("ttl", [math.nan, math.inf, -1, 1e300, "soon", None, [], True, 10**400])
def test_a_claim_with_an_absurd_ttl_counts_for_the_usual_time(ttl):
    now = datetime(2026, 11, 24, tzinfo=UTC)
    store = MemoryStore(clock=lambda: now)
    body = json.dumps({"restore_id": "r1", "holder": "somebody", "ttl_seconds": ttl})
    store.put(layout.lease_claim_key(1), body.encode())
    assert lease.check_held(store, "r1").ttl_seconds == lease_objects.DEFAULT_TTL_SECONDS
    with pytest.raises(LeaseHeldError):
        lease.acquire(store, restore_id="r2", holder="another")
    now += timedelta(seconds=lease_objects.DEFAULT_TTL_SECONDS + 1)
    clock = iter(range(10**6))
    taken = lease.acquire(
        store,
        restore_id="r2",
        holder="another",
        clock=SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None),
    )
    assert taken.epoch == 2


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"restore_id": 7, "holder": {}}', b"\xff"])
def test_a_claim_that_makes_no_sense_belongs_to_nobody(body):
    store = MemoryStore()
    store.put(layout.lease_claim_key(1), body)
    with pytest.raises(TuneRestoreError, match=r"\?"):
        lease.check_held(store, "r1")


def test_the_holder_of_a_lease_is_named_in_one_harmless_line():
    store = MemoryStore()
    claim = {"restore_id": "r1", "holder": "\x1b[31mme\n::group::", "ttl_seconds": 60}
    store.put(layout.lease_claim_key(1), json.dumps(claim).encode())
    with pytest.raises(LeaseHeldError) as refused:
        lease.acquire(store, restore_id="r2", holder="another")
    assert "restored by me :group:: (" in str(refused.value)


def test_an_outcome_with_a_word_we_do_not_know_is_refused(store):
    store.put(OUTCOME, outcome().to_json().replace(b"finished", b"glorious"))
    with pytest.raises(RecordUnreadableError, match="glorious"):
        AttemptRecords(store, "r1", "bad").outcome()


def test_metrics_are_scalars_and_text_can_be_encoded(store):
    body = json.loads(outcome().to_json()) | {"metrics": {"a": [1], "b": 2}, "error": "\ud800"}
    store.put(OUTCOME, json.dumps(body).encode())
    read = AttemptRecords(store, "r1", "bad").outcome()
    assert (read.metrics, read.error) == ({"b": 2}, "?")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "{}", '{"trial_id": 1, "iteration": 2, "metrics": {}}', "[" * 5000,
             '{"trial_id": "t", "iteration": "2", "metrics": {}}',
             '{"trial_id": "t", "iteration": 2, "metrics": []}', '{"trial_id": "t"}'],
)  # fmt: skip
def test_a_line_that_only_begins_like_progress_is_an_ordinary_line(text):
    assert RunnerProgress.from_line(PROGRESS_PREFIX + text) is None


def test_a_trial_the_plan_does_not_have_is_named(store):
    with pytest.raises(InvalidInputError, match="no trial 'x'"):
        claim_attempt(store, read_plan(store, "r1"), "x", RunnerSettings(trainable="m:train"))


@pytest.mark.parametrize("body", [b"{}", b"7", b'{"result.json": "1", "progress.csv": 1}', b"{"])
def test_what_a_runner_wrote_down_at_its_start_is_checked(body):
    store = MemoryStore()
    store.put("d/result.json", b'{"training_iteration": 1}\n')
    store.put(f"{layout.trial_dir('r1', 'bad')}/start-d.json", body)
    request = RunnerRequest(
        experiment="x", restore_id="r1", trial_id="bad", attempt=1, trainable="m:t", trainable_name="t",
        action="resume",
    )  # fmt: skip
    with pytest.raises(RecordUnreadableError, match="start-d"):
        prepare_results(store, request, "d", Start("checkpoint_000001", 3))


def test_rows_with_absurd_numbers_are_left_where_they_are():
    store = MemoryStore()
    body = b'{"training_iteration": 1' + b"0" * 400 + b"}\n" + b"[" * 3000 + b"\n"
    store.put("d/result.json", body + b'{"training_iteration": 2}\n')
    request = RunnerRequest(
        experiment="x", restore_id="r1", trial_id="bad", attempt=1, trainable="m:t", trainable_name="t",
        action="resume", trim_results=True,
    )  # fmt: skip
    prepare_results(store, request, "d", Start("checkpoint_000001", 1))
    assert store.get("d/result.json") == body
