"""Failures are counted over all restores; a trial that fails too often is quarantined until released."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError, LeaseHeldError
from airflow_tune_restore.protocol import attempts, layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.history import FailedAttempt, History, seen_before
from airflow_tune_restore.restore.ledger import (
    FIRST_MEMORY_BYTES,
    memory_to_ask,
    read_history,
    read_ledger,
)
from airflow_tune_restore.restore.release import release_trials
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import PLACE, beat, leave_attempt, night, plan_night, start_night

GIB = 1024.0**3


@pytest.fixture
def store():
    made = MemoryStore()
    rows = [
        make_row("done", last_result={"training_iteration": 4}, last_result_time=4.0),
        make_row("bad", status="ERROR", error=True, last_result={"training_iteration": 2}),
        make_row("hung", status="RUNNING", last_result={"training_iteration": 1}),
    ]
    made.put(STATE_NAME, make_state(rows))
    return made


def history(store, trial_id="bad") -> History:
    return read_ledger(store)[0].trials.get(trial_id, History())


def test_a_failed_attempt_is_entered_with_all_that_tells_it_apart(store):
    night(store, "r1", ended_at="2026-11-24T01:00:00+00:00")
    assert history(store).failures == (
        FailedAttempt(
            restore_id="r1", attempt=1, cause="trainable", type="ValueError", message="no", place=PLACE,
            iteration=3, ended_at="2026-11-24T01:00:00+00:00",
        ),
    )  # fmt: skip


def test_a_runner_that_saved_before_its_node_was_taken_away_counts(store):
    """Its outcome shows that it was stopped; the status of its pod shows that a node was lost."""
    plan = start_night(store, "r1")
    request = leave_attempt(store, plan, "bad", result="interrupted", iteration=3)
    AttemptRecords.of(store, request).record_exit(
        request.attempt, 4, "The pod was evicted: The node was low on resource: disk."
    )
    commit_restore(store, "r1")
    (failure,) = history(store).failures
    assert (failure.cause, failure.iteration) == ("node_lost", 3)


def test_a_pod_that_was_stopped_by_us_does_not_count(store):
    plan = start_night(store, "r1")
    AttemptRecords.of(store, leave_attempt(store, plan, "bad", result="interrupted")).record_exit(
        leave_attempt(store, plan, "bad", result="interrupted").attempt, 4, "pod p ended (Error)"
    )
    commit_restore(store, "r1")
    assert history(store) == History()


def test_a_trial_that_was_given_up_with_its_shared_driver_does_not_count(store):
    """The driver may have thawed, and have recorded that it was stopped."""
    plan = start_night(store, "r1")
    request = leave_attempt(store, plan, "bad", result="interrupted")
    shared = replace(request, is_shared=True)
    store.put(layout.request_key("r1", "bad", request.attempt), shared.to_json())
    AttemptRecords.of(store, request).record_exit(request.attempt, None, "its shared driver died")
    commit_restore(store, "r1")
    assert history(store) == History()


@pytest.mark.parametrize("result", ["interrupted", "refused", "fenced", "finished"])
def test_what_is_no_failure_does_not_count(store, result):
    night(store, "r1", result=result)
    assert read_ledger(store)[0].trials == {}
    assert not any(entry.name == "ledger.json" for entry in store.list_dir(layout.ROOT))


def test_a_runner_that_died_counts_and_one_that_never_ran_does_not(store, monkeypatch):
    monkeypatch.setattr(attempts, "QUIET_SECONDS", 0.0)
    plan = start_night(store, "r1")
    beat(store, claim_attempt(store, plan, "bad", RunnerSettings(trainable="m:train")))
    claim_attempt(store, plan, "hung", RunnerSettings(trainable="m:train"))
    commit_restore(store, "r1")
    assert [f.cause for f in history(store).failures] == ["killed"]
    assert history(store, "hung") == History()


@pytest.mark.parametrize(
    ("exit_code", "message", "causes"),
    [(-9, "", ["killed"]), (137, "OOMKilled", ["out_of_memory"]), (3, "", [])],
)
def test_what_was_seen_of_a_runners_end_is_entered(store, exit_code, message, causes):
    plan = start_night(store, "r1")
    request = claim_attempt(store, plan, "bad", RunnerSettings(trainable="m:train"))
    AttemptRecords.of(store, request).record_exit(request.attempt, exit_code, message)
    commit_restore(store, "r1")
    assert [f.cause for f in history(store).failures] == causes


def test_the_same_exception_at_the_same_place_twice_is_quarantined(store):
    assert night(store, "r1").quarantined == ()
    assert plan_night(store).trial("bad").action is TrialAction.RESUME
    summary = night(store, "r2")
    assert summary.quarantined == ("bad",)
    release = "`tune-restore release memory: bad` (in Airflow: the DAG tune_restore_admin)"
    assert f"1 quarantined (bad); {release} lets bad run again" in summary.headline()

    plan = plan_night(store)
    bad = plan.trial("bad")
    assert (bad.action, bad.quarantined, bad.status) == (TrialAction.KEEP, True, "ERROR")
    assert bad.reason == (
        f"ERROR, quarantined: ValueError at {PLACE} after iteration 3, 2 times; "
        f"{release} lets it run again"
    )
    assert any("1 quarantined (bad)" in warning for warning in plan.warnings)
    assert [trial.trial_id for trial in plan.to_run] == ["hung"]


def test_starting_over_does_not_get_around_a_quarantine(store):
    night(store, "r1")
    night(store, "r2")
    plan = plan_night(store, flags=ResumeFlags.from_flags(restart_errored=True))
    assert plan.trial("bad").action is TrialAction.KEEP


@pytest.mark.parametrize(
    "change",
    [{"iteration": 4}, {"place": "project/train.py:8 in step"}, {"error_type": "KeyError"},
     {"cause": "storage"}, {"cause": "actor_died", "place": ""}, {"memory": 8 * GIB}],
)  # fmt: skip
def test_another_failure_is_tried_again(store, change):
    night(store, "r1")
    night(store, "r2", **change)
    assert plan_night(store).quarantined == ()


def test_a_store_that_fails_at_the_same_line_twice_quarantines_nobody(store):
    for number in (1, 2, 3):
        night(store, f"r{number}", cause="storage")
    assert plan_night(store).quarantined == ()


def test_max_attempts_counts_every_failure(store):
    for number in (1, 2):
        night(store, f"r{number}", cause="actor_died", place="", iteration=number)
    assert plan_night(store, max_attempts=3).quarantined == ()
    (bad,) = plan_night(store, max_attempts=2).quarantined
    assert "2 failed attempts, of at most 2" in bad.reason
    assert plan_night(store).quarantined == ()


def test_a_commit_that_quarantines_is_final_whatever_the_next_plan_says(store):
    options = {"max_attempts": 1}
    assert night(store, "r1", options=options).quarantined == ("bad",)
    assert [trial.trial_id for trial in plan_night(store).quarantined] == ["bad"]


def test_an_unfinished_trial_whose_runners_are_killed_is_quarantined_as_it_is(store):
    for number in (1, 2):
        plan = start_night(store, f"r{number}")
        request = claim_attempt(store, plan, "hung", RunnerSettings(trainable="m:t"))
        AttemptRecords.of(store, request).record_exit(request.attempt, -9, "Killed")
        commit_restore(store, f"r{number}")
    (hung,) = plan_night(store, max_attempts=2).quarantined
    assert (hung.status, hung.action) == ("RUNNING", TrialAction.KEEP)


def test_a_trial_that_finished_after_all_is_not_held_back(store):
    night(store, "r1")
    plan = start_night(store, "r2")
    leave_attempt(store, plan, "bad", result="failed")
    leave_attempt(store, plan, "bad", result="finished")
    assert commit_restore(store, "r2").quarantined == ()
    again = plan_night(store, flags=ResumeFlags.parse({"finished": "resume"}))
    assert again.trial("bad").action is TrialAction.RESUME


def test_a_trial_that_is_started_over_hands_its_failures_on(store):
    night(store, "r1")
    flags = ResumeFlags.from_flags(restart_errored=True)
    plan = start_night(store, "r2", flags=flags)
    new_id = plan.trial("bad").final_trial_id
    leave_attempt(store, plan, "bad", result="failed")
    assert commit_restore(store, "r2").quarantined == (new_id,)
    assert [f.restore_id for f in history(store, new_id).failures] == ["r1", "r2"]
    assert plan_night(store).trial(new_id).quarantined


def test_entering_a_restore_again_changes_nothing(store):
    night(store, "r1")
    plan = start_night(store, "r2")
    leave_attempt(store, plan, "bad", result="failed")
    commit_restore(store, "r2")
    body = store.get(layout.LEDGER)
    record = json.loads(store.get(layout.commit_key("r2")))
    store.put(layout.commit_key("r2"), json.dumps({**record, "is_done": False}).encode())
    lease_again(store, "r2")
    commit_restore(store, "r2")
    assert store.get(layout.LEDGER) == body


def lease_again(store, restore_id):
    lease.acquire(store, restore_id=restore_id, holder="test")


def test_what_a_dead_restore_left_is_entered_by_the_next(store, monkeypatch):
    plan = start_night(store, "r1")
    leave_attempt(store, plan, "bad", result="failed")
    monkeypatch.setattr(lease, "_wait_for_death", lambda *_args: None)
    commit_abandoned(store, restore_id="r2", holder="the next")
    assert [f.restore_id for f in history(store).failures] == ["r1"]


def test_a_released_trial_runs_again_and_counts_from_nothing(store):
    night(store, "r1")
    night(store, "r2")
    released = release_trials(store, ["bad"], holder="test")["bad"]
    assert len(released.released) == 2
    assert released.released_at
    assert plan_night(store).trial("bad").action is TrialAction.RESUME
    assert night(store, "r3").quarantined == ()
    assert night(store, "r4").quarantined == ("bad",)
    assert len(history(store).released) == 2


def test_a_restore_that_is_entered_after_a_release_does_not_take_it_back(store):
    night(store, "r1")
    night(store, "r2")
    release_trials(store, ["bad"], holder="test")
    record = json.loads(store.get(layout.commit_key("r2")))
    store.put(layout.commit_key("r2"), json.dumps({**record, "is_done": False}).encode())
    lease_again(store, "r2")
    commit_restore(store, "r2")
    assert plan_night(store).trial("bad").action is TrialAction.RESUME


def test_releasing_what_is_not_quarantined_is_refused_and_writes_nothing(store):
    objects = dict(store._objects)
    with pytest.raises(InvalidInputError, match="bad of memory: is not quarantined"):
        release_trials(store, ["bad"], holder="test")
    with pytest.raises(InvalidInputError, match=r"no trial 'nobody'.*tune-restore plan"):
        release_trials(store, ["nobody"], holder="test")
    assert store._objects == objects


def test_releasing_while_a_restore_is_at_work_is_refused(store):
    night(store, "r1")
    start_night(store, "r2")
    with pytest.raises(LeaseHeldError, match="test r2"):
        release_trials(store, ["bad"], holder="test")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"trials": {"bad": 1}}', b"\xff\xfe", b"[" * 100_000,
             b'{"trials": null}']
)  # fmt: skip
def test_a_ledger_that_makes_no_sense_is_reported_and_stops_no_commit(store, body):
    store.put(layout.LEDGER, body)
    plan = plan_night(store)
    assert any("is unreadable" in warning for warning in plan.warnings)
    assert plan.quarantined == ()
    assert night(store, "r1").state_file is not None
    assert len(history(store).failures) == 1


def test_a_ledger_of_a_later_release_is_read(store):
    night(store, "r1")
    document = json.loads(store.get(layout.LEDGER))
    document["added_later"] = document["trials"]["bad"]["added_later"] = 1
    store.put(layout.LEDGER, json.dumps(document).encode())
    assert len(history(store).failures) == 1


def test_an_earlier_attempt_that_failed_in_the_same_way_is_found(store):
    night(store, "r1")
    plan = start_night(store, "r2")
    request = leave_attempt(store, plan, "bad", result="failed")
    found = seen_before(read_history(store, plan, "bad").failures, "r2", request.attempt)
    assert found is not None
    assert found.restore_id == "r1"
    other = leave_attempt(store, plan, "bad", result="failed", iteration=5)
    assert seen_before(read_history(store, plan, "bad").failures, "r2", other.attempt) is None
    assert seen_before((), "r2", 1) is None


def out_of_memory(*asked):
    return tuple(
        FailedAttempt(restore_id="r", attempt=n, cause="out_of_memory", memory=memory)
        for n, memory in enumerate(asked)
    )


def test_memory_is_doubled_up_to_the_limit_and_nobody_else_gets_more(store):
    plan = plan_night(store, max_memory_bytes=20 * GIB)
    assert memory_to_ask(plan, "bad", History()) is None
    other = FailedAttempt(restore_id="r", attempt=1, cause="trainable", memory=GIB)
    assert memory_to_ask(plan, "bad", History(failures=(other,))) is None
    asked: list[float | None] = [None]
    for _ in range(5):
        asked.append(memory_to_ask(plan, "bad", History(failures=out_of_memory(*asked))))
    assert asked[1:] == [FIRST_MEMORY_BYTES, 8 * GIB, 16 * GIB, 20 * GIB, 20 * GIB]
    released = History(released=out_of_memory(8 * GIB))
    assert memory_to_ask(plan, "bad", released) == 16 * GIB


@given(
    st.lists(st.one_of(st.none(), st.floats(1, 1e15)), min_size=1, max_size=8), st.floats(0, 1e13)
)
def test_a_trial_is_never_given_more_than_the_limit(asked, limit):
    store = MemoryStore()
    store.put(STATE_NAME, make_state([make_row("bad", status="ERROR", error=True)]))
    plan = plan_night(store, max_memory_bytes=limit)
    given = memory_to_ask(plan, "bad", History(failures=out_of_memory(*asked)))
    assert given is not None
    assert given <= max(limit, plan.trial("bad").resources.get("memory", 0.0))


def test_the_request_asks_for_the_memory_and_the_ledger_keeps_it(store):
    plan = start_night(store, "r1")
    request = leave_attempt(
        store, plan, "bad", result="failed", cause="out_of_memory", memory=8 * GIB
    )
    assert request.resources == {**plan.trial("bad").resources, "memory": 8 * GIB}
    commit_restore(store, "r1")
    assert history(store).failures[0].memory == 8 * GIB
    assert memory_to_ask(plan_night(store), "bad", history(store)) == 16 * GIB


OOM = "OOMKilled: the container of pod p needed more than its memory limit"


@pytest.mark.parametrize(
    ("told", "said", "cause"),
    [
        ({"cause": "actor_died"}, OOM, "out_of_memory"),
        ({"cause": "unknown"}, OOM, "out_of_memory"),
        (
            {
                "cause": "trainable",
                "error": "DataLoader worker (pid 7) is killed by signal: Killed",
            },
            OOM,
            "out_of_memory",
        ),
        ({"cause": "trainable", "error": "division by zero"}, OOM, "trainable"),
        ({"cause": "actor_died"}, "pod p ended (Error)", "actor_died"),
        ({"cause": "actor_died"}, "The pod was evicted (Evicted): low on disk", "actor_died"),
    ],
)
def test_a_worker_that_was_killed_for_its_memory_is_explained_by_its_place(
    store, told, said, cause
):
    plan = start_night(store, "r1")
    request = leave_attempt(store, plan, "bad", result="failed", memory=8 * GIB, **told)
    AttemptRecords.of(store, request).record_exit(request.attempt, 1, said)
    commit_restore(store, "r1")
    assert [failure.cause for failure in history(store).failures] == [cause]
    more = memory_to_ask(plan_night(store), "bad", history(store))
    assert more == (16 * GIB if cause == "out_of_memory" else None)


def test_an_attempt_that_never_started_is_taken_up_by_whoever_would_claim_the_same(store):
    plan = start_night(store, "r1")
    first = claim_attempt(
        store, plan, "bad", RunnerSettings(trainable="m:train", runtime_env={"pip": ["a"]})
    )
    same = claim_attempt(
        *(store, plan, "bad"),
        RunnerSettings(trainable="m:train", runtime_env={"pip": ["a"]}),
        unstarted=first,
    )
    assert same == first
    other = claim_attempt(store, plan, "bad", RunnerSettings(trainable="m:mended"), unstarted=first)
    assert (other.attempt, other.trainable) == (2, "m:mended")


def test_a_plan_of_an_older_release_has_no_limits(store):
    plan = plan_night(store)
    document = json.loads(plan.to_json())
    del document["choices"]["max_attempts"], document["choices"]["max_memory_bytes"]
    for trial in document["trials"]:
        del trial["quarantined"]
    assert type(plan).from_json(json.dumps(document).encode()) == plan
