"""The restores of an experiment: who, when, before and after. An odd record costs its own restore."""

import json
import math
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.lease_objects import DagRunId, HolderStatus
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.record_json import encode
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.views import restores as views_restores
from airflow_tune_restore.views.restore import view_restore
from airflow_tune_restore.views.restores import view_restores
from tests.support.experiments.built import (
    KILLED,
    STATE_NAME,
    make_experiment,
    make_row,
    make_state,
)
from tests.support.planted import LONG, PLANTS, check_sent, leaves, plant
from tests.support.planted import encode as encode_planted
from tests.support.records import leave_attempt, night, prepare_night, start_night
from tests.support.storage.counting import Clock, CountingStore

ROWS = [
    make_row("done", last_result={"training_iteration": 4, "score": 0.5}, last_result_time=4.0),
    make_row("bad", status="ERROR", error=True, last_result={"training_iteration": 2}),
]
COMMITTED = STATE_NAME.replace(".json", "_r000001.json")
GARBAGE = [b"", b"{}", b"[]", b"null", b"[" * 50_000, b"\xff\xfe", b"9" * 5000]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    made = CountingStore.new(clock)
    made.put("tuner.pkl", (KILLED / "tuner.pkl").read_bytes())
    made.put(STATE_NAME, make_state(ROWS))
    return made


def seen(store):
    view = view_restores(store)
    json.dumps(view, allow_nan=False)
    check_sent(view, trials=len(view["restores"]))
    return view


def one(store, restore_id="r1"):
    view = view_restore(store, restore_id)
    json.dumps(view, allow_nan=False)
    check_sent(view, trials=len(view["changes"]))
    return view


def states(store):
    return {row["restore_id"]: row["state"] for row in seen(store)["restores"]}


def test_an_experiment_without_restores_has_none_and_nothing_to_undo(store):
    view = seen(store)
    assert view["restores"] == []
    assert view["undo"]["restore_id"] is None
    assert "no restore of this experiment was committed" in view["undo"]["why_not"]


def test_a_committed_restore_says_who_when_what_for_and_how_many(store, clock):
    began = clock.now
    dag_run = DagRunId(dag_id="nightly", run_id="r__1", started_at="2026-01-01T00:00:00+00:00")
    plan = start_plan(prepare_night(store, "r1"), holder="dag nightly, run r__1", dag_run=dag_run)
    clock.now += timedelta(hours=1)
    leave_attempt(store, plan, "bad", iteration=6)
    commit_restore(store, "r1")
    clock.now += timedelta(hours=1)
    (row,) = seen(store)["restores"]
    assert row == {
        "restore_id": "r1",
        "holder": "dag nightly, run r__1",
        "dag_run": {"dag_id": "nightly", "run_id": "r__1"},
        "began": began.isoformat(),
        "committed": (began + timedelta(hours=1)).isoformat(),
        "state": "committed",
        "state_file": COMMITTED,
        "base": STATE_NAME,
        "strategy": "per_trial",
        "flags": {"unfinished": "resume", "errored": "resume"},
        "to_run": 1,
        "total": 2,
        "note": "",
    }


def test_the_newest_restore_comes_first_and_an_undo_names_what_it_deletes(store):
    night(store, "zz", iteration=3)
    night(store, "aa", iteration=4)
    view = seen(store)
    assert [row["restore_id"] for row in view["restores"]] == ["aa", "zz"]
    assert view["undo"]["restore_id"] == "aa"
    assert view["undo"]["deletes"] == [STATE_NAME.replace(".json", "_r000002.json")]
    assert (view["undo"]["newest"], view["undo"]["why_not"]) == (COMMITTED, "")


def test_after_an_undo_the_restore_is_undone_and_keeps_its_time(store, clock):
    night(store, "r1", result="finished", iteration=6)
    committed = clock.now
    clock.now += timedelta(hours=1)
    undo_commit(store, holder="test")
    view = seen(store)
    (row,) = view["restores"]
    assert (row["state"], row["committed"]) == ("undone", committed.isoformat())
    assert row["note"] == f"undone at {clock.now:%Y-%m-%d %H:%M:%S} UTC"
    assert view["undo"]["restore_id"] is None
    assert "Nothing was changed" not in view["undo"]["why_not"]


def test_a_restore_whose_dag_run_has_ended_is_not_at_work(store):
    start_night(store, "r1")
    dead = HolderStatus(has_ended=True, found="Its DAG run is failed")
    (row,) = view_restores(store, ask_holder=lambda _status: dead)["restores"]
    assert row["state"] == "left"
    assert row["note"].startswith("It was not committed.")
    assert row["note"].endswith("Its DAG run is failed.")


def test_a_restore_at_work_one_left_behind_and_one_that_never_had_a_plan(store, clock):
    start_night(store, "r1")
    assert states(store) == {"r1": "running"}
    assert "was committed" in seen(store)["undo"]["why_not"]
    clock.now += timedelta(hours=9)
    (row,) = seen(store)["restores"]
    assert row["state"] == "left"
    assert "did not release the lease" in row["note"]
    lease.release(store, lease.check_held(store, "r1"))
    store.put(f"{layout.restore_dir('odd')}/other", b"x")
    assert states(store) == {"r1": "left", "odd": "empty"}


def test_while_a_restore_is_at_work_the_commit_before_it_cannot_be_undone(store):
    night(store, "r1")
    start_night(store, "r2")
    undo = seen(store)["undo"]
    assert undo["restore_id"] is None
    assert "r2" in undo["why_not"]


def test_a_commit_that_was_cut_off_is_left_for_the_next_restore(store, clock):
    night(store, "r1")
    record = json.loads(store.get(layout.commit_key("r1")))
    store.put(layout.commit_key("r1"), json.dumps(record | {"is_done": False}).encode())
    (row,) = seen(store)["restores"]
    assert row["state"] == "left"
    assert "cut off" in row["note"]
    assert "cut off" in one(store)["problem"]


def test_the_lease_of_a_sweep_is_not_a_restore(store):
    start_night(store, "r1")
    store.put(f"{layout.restore_dir('sweep-1')}/plan.json", b"{}")
    assert states(store) == {"r1": "running"}


@pytest.mark.parametrize("body", GARBAGE)
@pytest.mark.parametrize("key", [layout.plan_key("r1"), layout.commit_key("r1")])
def test_garbage_costs_its_own_restore_alone(store, key, body):
    night(store, "r1")
    night(store, "r2", iteration=4)
    store.put(key, body)
    rows = {row["restore_id"]: row for row in seen(store)["restores"]}
    assert rows["r1"]["state"] == "unreadable"
    assert key.rpartition("/")[2] in rows["r1"]["note"]
    assert (rows["r2"]["state"], rows["r2"]["to_run"]) == ("committed", 1)
    assert one(store, "r1")["problem"]
    assert one(store, "r2")["problem"] == ""


@pytest.mark.parametrize("record", [read_plan, read_commit_record], ids=lambda each: each.__name__)
def test_no_field_of_a_record_shows_escapes_or_costs_the_others(store, record):
    """Each leaf of a plan, or of a commit record, replaced by each kind of foreign value."""
    night(store, "r1")
    night(store, "r2", iteration=4)
    key = layout.plan_key("r1") if record is read_plan else layout.commit_key("r1")
    document = json.loads(store.get(key))
    for path in leaves(document):
        for value in PLANTS.values():
            store.put(key, encode_planted(plant(document, path, value)))
            rows = {row["restore_id"]: row for row in seen(store)["restores"]}
            assert rows["r2"]["state"] == "committed", path
            one(store)


def test_odd_names_of_directories_are_not_restores(store):
    night(store, "r1")
    for name in ("%2E%2E", "a%0Ab", "x%E2%80%AEy", "%", "z" * 300):
        store.put(f"{layout.ROOT}/{name}/plan.json", b"{}")
    assert states(store) == {"r1": "committed"}


def test_what_a_holder_calls_itself_is_shown_as_text(store):
    start_plan(prepare_night(store, "r1"), holder=LONG)
    (row,) = seen(store)["restores"]
    assert "forged" in row["holder"]


def test_a_claim_of_garbage_leaves_its_restore_without_a_holder(store):
    night(store, "r1")
    store.put(layout.lease_claim_key(1), b"[" * 50_000)
    (row,) = seen(store)["restores"]
    assert (row["state"], row["holder"], row["began"]) == ("committed", "?", None)


def test_plans_that_are_too_large_together_are_not_read(store, monkeypatch):
    night(store, "r1")
    night(store, "r2", iteration=4)
    size = len(store.get(layout.plan_key("r2")))
    monkeypatch.setitem(views_restores._MOST, "plan.json", size)
    store.got.clear()
    rows = {row["restore_id"]: row for row in seen(store)["restores"]}
    assert (rows["r2"]["to_run"], rows["r1"]["to_run"]) == (1, None)
    assert rows["r1"]["state"] == "committed"
    assert "too large" in rows["r1"]["note"]
    assert store.got[layout.plan_key("r1")] == 0


def test_a_commit_record_that_is_too_large_is_not_read(store, monkeypatch):
    night(store, "r1")
    monkeypatch.setitem(views_restores._MOST, "commit.json", 1)
    (row,) = seen(store)["restores"]
    assert (row["state"], row["to_run"]) == ("unreadable", 1)


def test_only_the_newest_restores_are_listed(store, monkeypatch):
    monkeypatch.setattr(views_restores, "MAX_RESTORES", 2)
    for name in ("c", "b", "a"):
        night(store, name, iteration=3)
    assert list(states(store)) == ["a", "b"]


def test_before_and_after_are_those_of_the_commit(store):
    row = make_row("bad", last_result={"training_iteration": 6, "score": 0.75})
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "bad", row)
    summary = commit_restore(store, "r1")
    store.asked.clear()
    view = one(store)
    assert view["headline"] == summary.headline()
    assert view["metric"] == "score"
    assert (view["problem"], view["hidden"]) == ("", 0)
    assert view["changes"] == summary.describe_changes()
    assert {"trial_id": "bad", "metric_after": 0.75}.items() <= next(
        change for change in view["changes"] if change["trial_id"] == "bad"
    ).items()


def test_the_outcomes_of_trials_that_finished_are_not_read(store):
    night(store, "r1", result="finished", iteration=6)
    store.got.clear()
    assert one(store)["problem"] == ""
    assert store.got[layout.outcome_key("r1", "bad", 1)] == 0


def test_a_finished_trial_that_was_run_again_in_vain_says_why(store):
    """Its row stays TERMINATED, so its row alone does not tell."""
    flags = ResumeFlags.parse({"finished": "resume", "unfinished": "skip"})
    plan = start_night(store, "r1", flags=flags)
    row = make_row("done", last_result={"training_iteration": 4}, last_result_time=4.0)
    leave_attempt(store, plan, "done", row, result="interrupted", error="no node can hold it")
    commit_restore(store, "r1")
    (done,) = (change for change in one(store)["changes"] if change["trial_id"] == "done")
    assert "no node can hold it" in done["note"]


def test_samples_that_later_restores_drew_are_not_said_to_be_left(tmp_path):
    store = LocalStore(make_experiment(tmp_path / "exp", ROWS, total_samples=5))
    plan = start_night(store, "r1", strategy="whole_experiment")
    assert plan.continues_search
    leave_attempt(store, plan, layout.WHOLE_EXPERIMENT, ROWS[0], make_row("bad"))
    assert commit_restore(store, "r1").samples_left == 3
    assert "3 samples were never drawn" in one(store)["headline"]
    later = COMMITTED.replace("000001", "000002")
    store.put(later, store.get(COMMITTED))
    assert "never drawn" not in one(store)["headline"]


def test_the_plan_of_another_restore_in_the_place_of_one_is_unreadable(store):
    night(store, "r1")
    night(store, "r2", iteration=4)
    store.put(layout.plan_key("r1"), store.get(layout.plan_key("r2")))
    assert states(store) == {"r2": "committed", "r1": "unreadable"}


def test_a_restore_that_took_the_lease_twice_began_with_the_newest(store, clock):
    start_night(store, "r1")
    clock.now += timedelta(hours=1)
    lease.release(store, lease.check_held(store, "r1"))
    lease.acquire(store, restore_id="r1", holder="a second try")
    (row,) = seen(store)["restores"]
    assert (row["holder"], row["began"]) == ("a second try", clock.now.isoformat())


def test_the_error_of_a_trial_that_failed_again_is_in_its_note(store):
    night(store, "r1", error="<b>no</b>\x1b[31m")
    (bad,) = (change for change in one(store)["changes"] if change["trial_id"] == "bad")
    assert "<b>no</b>" in bad["note"]


def test_a_metric_that_json_lacks_is_none(store):
    row = make_row("bad", last_result={"training_iteration": 6, "score": math.nan})
    leave_attempt(store, start_night(store, "r1"), "bad", row)
    commit_restore(store, "r1")
    (bad,) = (change for change in one(store)["changes"] if change["trial_id"] == "bad")
    assert bad["metric_after"] is None


@pytest.mark.parametrize("gone", [STATE_NAME, COMMITTED])
def test_a_state_that_is_gone_is_a_sentence(store, gone):
    night(store, "r1")
    store.delete(gone)
    view = one(store)
    assert gone in view["problem"]
    assert (view["changes"], view["headline"]) == ([], "")


@pytest.mark.parametrize("odd", [STATE_NAME, COMMITTED])
@pytest.mark.parametrize("body", GARBAGE)
def test_a_state_of_garbage_is_a_sentence(store, odd, body):
    night(store, "r1")
    store.put(odd, body)
    assert one(store)["problem"]
    assert states(store) == {"r1": "committed"}


def test_an_undone_restore_and_one_at_work_say_why_they_have_no_table(store):
    night(store, "r1", result="finished", iteration=6)
    undo_commit(store, holder="test")
    assert "undone" in one(store)["problem"]
    start_night(store, "r2")
    assert "not committed" in one(store, "r2")["problem"]


def test_a_restore_that_does_not_exist_is_an_error(store):
    night(store, "r1")
    for restore_id in ("r9", "..", "../..", "lease"):
        with pytest.raises(KeyNotFoundError):
            view_restore(store, restore_id)


def test_a_restore_without_a_plan_is_a_sentence(store):
    store.put(f"{layout.restore_dir('odd')}/other", b"x")
    assert "does not exist" in one(store, "odd")["problem"]


def test_a_restore_that_changed_no_row_has_a_table_all_the_same(store):
    start_night(store, "r1")
    commit_restore(store, "r1")
    view = one(store)
    assert view["problem"] == ""
    assert [change["trial_id"] for change in view["changes"]] == ["done", "bad"]
    (row,) = seen(store)["restores"]
    assert (row["state"], row["state_file"]) == ("committed", "")


def test_the_choices_are_those_that_differ_from_the_defaults(store):
    start_night(store, "r1", allow_scratch=True, trials=("bad",), strategy="per_trial")
    (row,) = seen(store)["restores"]
    assert row["flags"] == {
        "unfinished": "resume",
        "errored": "resume",
        "allow_scratch": True,
        "trials": 1,
        "strategy": "per_trial",
    }


def test_a_hundred_restores_cost_four_requests_each(store):
    plan = start_night(store, "r0")
    leave_attempt(store, plan, "bad", iteration=6)
    commit_restore(store, "r0")
    body = json.loads(store.get(layout.plan_key("r0")))
    record = read_commit_record(store, "r0")
    for number in range(1, 100):
        name = f"r{number}"
        store.put(layout.plan_key(name), json.dumps(body | {"restore_id": name}).encode())
        store.put(layout.commit_key(name), encode(record))
    store.asked.clear()
    assert len(seen(store)["restores"]) == 100
    assert store.asked.total() <= 4 * 100 + 20
