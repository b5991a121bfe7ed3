"""A commit adds one state file, leaves other rows byte for byte, and can be done again."""

import json

import msgspec
import pytest

from airflow_tune_restore.exceptions import (
    KeyNotFoundError,
    LeaseHeldError,
    LeaseLostError,
    RunnerError,
    StateChangedError,
    StorageError,
)
from airflow_tune_restore.experiments.read import read_base, read_experiment
from airflow_tune_restore.experiments.state import parse_state
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.attempts import Watched
from airflow_tune_restore.restore import committed_state
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.own_restore import fresh_restore_id
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.planner import build_search_plan
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt, night, start_night

ROWS = [
    make_row("done", last_result={"training_iteration": 4, "score": 8}, last_result_time=4.0),
    make_row(
        "bad",
        status="ERROR",
        error=True,
        last_result={"training_iteration": 2},
        last_result_time=3.0,
    ),
    make_row("hung", status="RUNNING", last_result={"training_iteration": 1}, last_result_time=2.0),
]
COMMITTED = "experiment_state-2026-11-23_10-00-00_r000001.json"


@pytest.fixture
def store():
    made = MemoryStore()
    made.put(STATE_NAME, make_state(ROWS))
    return made


def start(store, restore_id="r1", **flags):
    flags.setdefault("resume_errored", True)
    return start_night(store, restore_id, flags=ResumeFlags.from_flags(**flags))


BAD_DONE = make_row("bad", last_result={"training_iteration": 6}, last_result_time=9.0)
HUNG_AGAIN = make_row(
    "hung", status="ERROR", error=True, last_result={"training_iteration": 3}, last_result_time=9.5
)


def raw(body):
    return {json.loads(json.loads(t))["trial_id"]: (t, m) for t, m in _pairs(body)}


def _pairs(body):
    end = body.find(b', "runner_data": ')
    pairs = msgspec.json.decode(
        body[len(b'{"trial_data": ') : end], type=list[tuple[msgspec.Raw, msgspec.Raw]]
    )
    return [(bytes(trial), bytes(metadata)) for trial, metadata in pairs]


def test_resumed_rows_are_replaced_and_all_others_stay_byte_for_byte(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", BAD_DONE)
    leave_attempt(store, plan, "hung", HUNG_AGAIN, result="failed", error="out of luck")
    summary = commit_restore(store, "r1")

    assert summary.state_file == COMMITTED
    before, after = raw(store.get(STATE_NAME)), raw(store.get(COMMITTED))
    assert after["done"] == before["done"]
    assert list(after) == list(before)
    trials = {trial.trial_id: trial for trial in parse_state(store.get(COMMITTED)).trials}
    assert (trials["bad"].status, trials["bad"].iteration) == (TrialStatus.TERMINATED, 6)
    # it failed again: its progress is kept all the same
    assert (trials["hung"].status, trials["hung"].iteration) == (TrialStatus.ERROR, 3)
    assert [change.trial_id for change in summary.failed] == ["hung"]
    assert "out of luck" in summary.table()


def test_the_committed_state_is_the_newest_by_name_and_by_time(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", BAD_DONE)
    commit_restore(store, "r1")
    experiment = read_experiment(store)
    assert experiment.state_file.name == COMMITTED
    assert (
        max(entry.name for entry in store.list_dir() if layout.is_state_file(entry.name))
        == COMMITTED
    )
    assert not experiment.warnings or all("tuner.pkl" in w for w in experiment.warnings)


@pytest.mark.parametrize("commits", [1, 3])
def test_a_driver_that_is_started_after_a_commit_has_the_newest_state(store, commits):
    """Though the clock of the store, and of those who commit, is ahead of the driver's."""
    for number in range(commits):
        night(store, f"r{number}", trial_id="bad", result="interrupted")
    newer = "experiment_state-2026-11-23_10-05-00.json"
    store.put(newer, make_state(ROWS, start_time=1300.0))
    assert read_experiment(store).state_file.name == newer


def test_committing_again_changes_nothing(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", BAD_DONE)
    first = commit_restore(store, "r1")
    objects = {e.name: store.get(e.name) for e in store.list_dir() if not e.is_dir}
    assert commit_restore(store, "r1") == first
    assert {e.name: store.get(e.name) for e in store.list_dir() if not e.is_dir} == objects


def test_a_commit_that_was_cut_off_before_its_state_file_makes_the_same_bytes(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", BAD_DONE)
    cut = MemoryStore(dict(store._objects))
    commit_restore(store, "r1")
    body = store.get(COMMITTED)
    # everything but the last step had happened
    record = json.loads(store.get(layout.commit_key("r1")))
    cut.put(layout.commit_key("r1"), json.dumps({**record, "is_done": False}).encode())
    commit_restore(cut, "r1")
    assert cut.get(COMMITTED) == body


def test_a_trial_whose_runner_never_wrote_keeps_its_row(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", BAD_DONE)
    summary = commit_restore(store, "r1")
    before, after = raw(store.get(STATE_NAME)), raw(store.get(COMMITTED))
    assert after["hung"] == before["hung"]
    assert {c.trial_id: c.note for c in summary.changes}["hung"] == "was not started"


def test_nothing_run_means_nothing_written(store):
    start(store)
    assert commit_restore(store, "r1").state_file is None
    with pytest.raises(KeyNotFoundError):
        store.get(COMMITTED)


def test_committing_nothing_again_is_no_error(store):
    start(store)
    first = commit_restore(store, "r1")
    assert commit_restore(store, "r1") == first
    start(store, "r2")
    assert commit_restore(store, "r1") == first


def test_an_unfinished_trial_that_is_not_resumed_becomes_terminated(store):
    start(store, resume_unfinished=False, resume_errored=False)
    commit_restore(store, "r1")
    trials = {trial.trial_id: trial for trial in parse_state(store.get(COMMITTED)).trials}
    assert trials["hung"].status is TrialStatus.TERMINATED
    assert trials["bad"].status is TrialStatus.ERROR


@pytest.mark.parametrize("indent", [2, None, 1, 4])
def test_a_row_that_becomes_terminated_changes_in_its_status_alone(indent):
    """However deep it nests and whatever it holds that looks like a status."""
    nested = json.loads("[" * 500 + '{"status": "RUNNING"}' + "]" * 500)
    row = make_row("hung", status="RUNNING", config={"status": "RUNNING", "nested": nested})
    row[0] = json.dumps(json.loads(row[0]) | {"note": '\n  "status": "RUNNING"'}, indent=indent)
    store = MemoryStore()
    store.put(STATE_NAME, make_state([row]))
    start(store, resume_unfinished=False, resume_errored=False)
    commit_restore(store, "r1")
    (committed,) = json.loads(store.get(COMMITTED))["trial_data"]
    assert json.loads(committed[0]) == json.loads(row[0]) | {"status": "TERMINATED"}
    assert committed[1] == row[1]
    assert len(committed[0]) < len(row[0]) + 10


def test_a_state_written_meanwhile_stops_the_commit(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", BAD_DONE)
    newer = "experiment_state-2026-11-24_10-00-00.json"
    store.put(newer, make_state(ROWS, start_time=5000.0))
    with pytest.raises(StateChangedError, match="2026-11-24"):
        commit_restore(store, "r1")
    assert read_experiment(store).state_file.name == newer


def test_a_restore_that_lost_its_lease_commits_nothing(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", BAD_DONE)
    lease.release(store, lease.check_held(store, "r1"))
    lease.acquire(store, restore_id="r2", holder="another")
    with pytest.raises(LeaseLostError, match="another"):
        commit_restore(store, "r1")
    with pytest.raises(KeyNotFoundError):
        store.get(COMMITTED)


def test_a_living_runner_is_waited_for_even_if_a_later_attempt_was_claimed(store, monkeypatch):
    plan = start(store)
    claim_attempt(store, plan, "bad", RunnerSettings(trainable="m:train"))
    store.put(layout.heartbeat_key("r1", "bad", 1), b"{}")
    claim_attempt(
        store, plan, "bad", RunnerSettings(trainable="m:train")
    )  # its launcher was killed there
    monkeypatch.setattr(
        "airflow_tune_restore.restore.committed_attempts.wait_until_all_over",
        lambda _store, found, **_kwargs: Watched([one for one in found if one.attempt == 1], []),
    )
    with pytest.raises(RunnerError, match=r"living runner \(attempt 1\)"):
        commit_restore(store, "r1")


def test_the_lease_is_free_after_the_commit(store):
    start(store)
    commit_restore(store, "r1")
    assert fresh_restore_id(store, "r1") == "r1-2"
    start(store, "r2")


def test_two_restores_started_together_are_one_restore_and_one_refusal(store):
    start(store)
    with pytest.raises(LeaseHeldError, match="test r1"):
        start(store, "r2")


def test_starting_again_returns_the_plan_as_first_written(store):
    first = start(store)
    assert start(store) == first


def test_what_a_dead_restore_left_is_committed_by_the_next(store, monkeypatch):
    plan = start(store)
    leave_attempt(store, plan, "bad", BAD_DONE)
    monkeypatch.setattr(lease, "_wait_for_death", lambda *_args: None)  # it was silent for its TTL
    (settled,) = commit_abandoned(store, restore_id="r2", holder="the next").values()
    assert settled is not None
    assert settled.state_file == COMMITTED
    assert [t.trial_id for t in start(store, "r2").to_run] == ["hung"]


def test_a_snapshot_of_another_trial_is_not_believed(store):
    plan = start(store)
    leave_attempt(store, plan, "bad", make_row("someone-else"))
    assert commit_restore(store, "r1").state_file is None


def test_a_restarted_trial_takes_the_row_of_the_old_one(store):
    plan = start(store, restart_errored=True, resume_errored=False)
    new_id = plan.trial("bad").new_trial_id
    leave_attempt(store, plan, "bad", make_row(new_id, last_result={"training_iteration": 6}))
    commit_restore(store, "r1")
    ids = [trial.trial_id for trial in parse_state(store.get(COMMITTED)).trials]
    assert ids == ["done", new_id, "hung"]


# one run of all trials


def run_of_all(store, rows, *, searcher=b"after"):
    """Leave what the run of a whole experiment leaves: one snapshot, with the searcher of its number."""
    request = leave_attempt(store, read_plan(store, "r1"), layout.WHOLE_EXPERIMENT, *rows)
    key = layout.snapshot_key("r1", layout.WHOLE_EXPERIMENT, request.attempt)
    state = json.loads(store.get(key))
    state["stats"]["searcher"] = 7
    store.put(key, json.dumps(state).encode())
    directory = layout.searcher_dir("r1", request.attempt)
    store.put(f"{directory}/{layout.numbered(6, 'search_gen_state-kept.json')}", b"before")
    store.put(f"{directory}/{layout.numbered(7, 'search_gen_state-kept.json')}", searcher)


HUNG_DONE = make_row("hung", last_result={"training_iteration": 6}, last_result_time=9.5)
DRAWN = make_row("new", last_result={"training_iteration": 6}, last_result_time=10.0)


def start_all(store):
    return start_night(store, strategy="whole_experiment")


def test_the_run_of_all_gives_every_row_and_what_was_drawn_follows(store):
    start_all(store)
    run_of_all(store, [DRAWN, HUNG_DONE, BAD_DONE])
    summary = commit_restore(store, "r1")
    rows = json.loads(store.get(COMMITTED))["trial_data"]
    assert rows == [ROWS[0], BAD_DONE, HUNG_DONE, DRAWN]
    assert store.get("search_gen_state-2026-11-23_10-00-00_r000001.json") == b"after"
    assert "all 2 resumed trials finished, 1 sample drawn now finished" in summary.headline()
    before = [(entry.name, entry.etag) for entry in store.list_dir()]
    commit_restore(store, "r1")
    assert [(entry.name, entry.etag) for entry in store.list_dir()] == before


def test_a_commit_cut_off_before_the_searcher_was_put_puts_it_when_run_again(store, monkeypatch):
    start_all(store)
    run_of_all(store, [HUNG_DONE, BAD_DONE, DRAWN])

    def cut_off(*_args):
        raise StorageError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(committed_state, "put_searcher", cut_off)
        with pytest.raises(StorageError):
            commit_restore(store, "r1")
    commit_restore(store, "r1")
    assert store.get("search_gen_state-2026-11-23_10-00-00_r000001.json") == b"after"
    assert sum(layout.is_state_file(entry.name) for entry in store.list_dir()) == 2


def test_an_experiment_that_never_started_gets_its_first_state(store):
    store.delete(STATE_NAME)
    store.put("tuner.pkl", b"")
    unborn = read_base(store)
    plan = build_search_plan(unborn, PlanChoices(), restore_id="r1")
    start_plan(PreparedRestore(store=store, plan=plan), holder="test")
    run_of_all(store, [DRAWN])
    summary = commit_restore(store, "r1")
    assert [trial.trial_id for trial in read_experiment(store).trials] == ["new"]
    assert summary.state_file is not None
    assert layout.is_committed_state(summary.state_file)


def test_samples_drawn_by_a_dead_run_are_settled_and_not_drawn_again(store):
    start_all(store)
    run_of_all(store, [HUNG_AGAIN, BAD_DONE, DRAWN])
    held = lease_objects.newest_claim(store, store.list_dir(layout.LEASE))
    store.put(
        layout.lease_claim_key(held.epoch),
        json.dumps({"restore_id": "r1", "holder": "x", "ttl_seconds": 0.0}).encode(),
    )
    commit_abandoned(store, restore_id="r2", holder="next")
    assert [t.trial_id for t in read_experiment(store).trials] == ["done", "bad", "hung", "new"]
    assert store.get("search_gen_state-2026-11-23_10-00-00_r000001.json") == b"after"
