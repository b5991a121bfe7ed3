"""Trials that share a driver end as with `Tuner.restore`, and each of them by itself."""

import itertools
import json

import pytest

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_INTERRUPTED
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.storage.fs import open_store
from tests.support.ray.compared import RESUMED, Case
from tests.support.ray.real_restore import RESTORE_ID
from tests.support.ray.sharing import Sharing, assert_same_end, multiply
from tests.support.waiting import eventually

EVERY = [1, 2, 3, 4, 5, 6]

CASES = [
    Case("two that differ", "two_errored", RESUMED),
    Case("restarted", "errored", {"restart_errored": True}),
    Case("with a stopper and a callback", "extras", RESUMED),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_trials_on_one_driver_end_as_with_tuner_restore(hosts, copied, tmp_path, case):
    assert_same_end(hosts, copied, tmp_path, case)


def test_each_trial_ends_by_itself_and_none_runs_beside_another_if_one_at_a_time_may(
    hosts, copied, tmp_path
):
    directory = copied("errored")
    multiply(directory, 8)
    journal = tmp_path / "journal"
    env = {
        "TUNE_TEST_JOURNAL": str(journal),
        "TUNE_TEST_FAILING_ROLE": "fails 2",
        "TUNE_TEST_DYING_ROLE": "fails 3",
    }
    sharing = Sharing(directory, "errored", hosts=hosts, env=env)
    first, raising, dying, cut, odd, stopped, alone, last = sharing.trial_ids
    sharing.hand_over(*(set(sharing.trial_ids) - {alone}))
    sharing.desk.ask_to_stop(stopped, 1)
    own = sharing.claim_own(alone)  # a runner of its own runs it, and somebody lays it there, too
    sharing.desk.hand_over(alone, 1)
    sharing.store.put(f"{layout.desk_dir(RESTORE_ID)}/..%2F..@000001.run.json", b"{}")
    sharing.store.put(f"{layout.desk_dir(RESTORE_ID)}/nobody@000001.run.json", b"{}")
    seed = json.loads(sharing.store.get(layout.seed_key(RESTORE_ID, odd)))
    sharing.store.put(layout.seed_key(RESTORE_ID, cut), json.dumps(seed).encode()[:1000])
    seed["trial_data"][0][0] = seed["trial_data"][0][0].replace("CLOUDPICKLE", "ANOTHER")
    sharing.store.put(layout.seed_key(RESTORE_ID, odd), json.dumps(seed).encode())

    ran = sharing.run(concurrent=1)

    assert ran.code == EXIT_FINISHED, ran.output
    outcomes = {trial_id: sharing.outcome(trial_id) for trial_id in sharing.trial_ids}
    assert own.trial_id == alone
    assert outcomes.pop(alone) is None
    assert not sharing.has_begun(alone)
    assert {trial_id: outcome.result for trial_id, outcome in outcomes.items()} == {
        first: "finished",
        raising: "failed",
        dying: "failed",
        cut: "refused",
        odd: "refused",
        stopped: "interrupted",
        last: "finished",
    }
    assert outcomes[raising].error == "out of luck again at iteration 4", ran.output
    assert outcomes[raising].place.startswith("tests/trainables.py:")
    assert "is not a valid state of one trial" in outcomes[cut].error
    assert "Ray cannot restore it" in outcomes[odd].error
    assert outcomes[stopped].error == "stopped before the trial ran"
    saved = [t for t in outcomes if sharing.exists(layout.snapshot_key(RESTORE_ID, t, 1))]
    assert saved == [first, raising, dying, last]
    left = {attempt.trial_id for attempt in sharing.desk.read().to_run}
    assert left == {alone, "../..", "nobody"}
    trained = [json.loads(line)["trial"] for line in journal.read_text().splitlines()]
    turns = [role for role, _ in itertools.groupby(trained)]
    assert sorted(turns) == ["fails", "fails 2", "fails 3", "fails 8"]
    commit_restore(sharing.store, RESTORE_ID)


def test_one_trial_is_stopped_and_goes_on_later_in_a_runner_of_its_own(hosts, copied, gate):
    directory = copied("errored")
    multiply(directory, 3)
    sharing = Sharing(directory, "errored", hosts=hosts, env={**gate.env, "TUNE_TEST_PRINTS": "1"})
    stopped, *others = sharing.trial_ids
    sharing.hand_over(*sharing.trial_ids, closes=False)
    request, driver = sharing.start()
    store = open_store(str(directory))
    eventually(lambda: all(sharing.progress(trial_id) == [4] for trial_id in sharing.trial_ids))
    for trial_id, role in zip(sharing.trial_ids, ["fails", "fails 2", "fails 3"], strict=True):
        eventually(lambda t=trial_id, r=role: sharing.printed(t) == [f"{r} has done 4"])
    sharing.desk.ask_to_stop(stopped, 1)
    eventually(lambda: sharing.outcome(stopped) is not None)
    outcome = sharing.outcome(stopped)
    assert (outcome.result, outcome.error_type, outcome.iteration) == (
        "interrupted",
        "Interrupted",
        4,
    )
    gate.open()
    eventually(lambda: all(sharing.outcome(trial_id) is not None for trial_id in others))
    assert sharing.progress(others[0]) == [4, 5, 6]
    assert sharing.desk.read().to_run == []
    sharing.desk.close()
    ran = sharing.finish(request, driver)
    assert ran.code == EXIT_FINISHED, ran.output
    assert [sharing.outcome(trial_id).result for trial_id in others] == ["finished", "finished"]

    sharing.trial = sharing.plan.trial(stopped)
    assert sharing.snapshot()[0]["status"] == "PAUSED"
    ran = sharing.run_alone(stopped)
    assert (ran.request.attempt, ran.code) == (2, EXIT_FINISHED), ran.output
    assert ran.outcome.metrics["started_from"] in (3, 4)
    assert sharing.iterations() == sharing.csv_iterations() == EVERY
    commit_restore(store, RESTORE_ID)


def test_a_trial_that_no_node_can_hold_is_given_up_alone(hosts, copied):
    env = {"TUNE_RESTORE_ROOM_SECONDS": "5"}
    sharing = Sharing(copied("two_errored"), "two_errored", hosts=hosts, env=env)
    sharing.hand_over(*sharing.trial_ids)
    ran = sharing.run(trainable="tests.support.experiments.asking:sparse_asks_for_a_hundred")
    assert ran.code == EXIT_FINISHED, ran.output
    plain, sparse = sorted(map(sharing.outcome, sharing.trial_ids), key=lambda o: o.result)
    assert plain.result == "finished"
    assert (sparse.result, sparse.error_type, sparse.cause) == (
        "interrupted", "NoRoomError", "no_room",
    )  # fmt: skip
    assert "requests CPU 100" in sparse.error
    sharing.trial = sharing.plan.trial(sparse.trial_id)
    assert sharing.snapshot()[0]["status"] == "PAUSED"


def test_a_callback_that_raises_ends_the_driver_and_is_held_against_no_trial(
    hosts, copied, tmp_path
):
    """Which trial it was about, its own runner tells next."""
    directory = copied("extras")
    multiply(directory, 3)
    record = tmp_path / "not" / "there"  # the experiment's callback writes it at each result
    sharing = Sharing(directory, "extras", hosts=hosts, env={"TUNE_TEST_RECORD": str(record)})
    sharing.hand_over(*sharing.trial_ids)
    ran = sharing.run(concurrent=2)
    assert ran.code == EXIT_INTERRUPTED, ran.output
    assert ran.outcome.error_type == "FileNotFoundError"
    begun = [t for t in sharing.trial_ids if sharing.has_begun(t)]
    assert len(begun) == 2
    for outcome in map(sharing.outcome, begun):
        assert (outcome.result, outcome.error_type) == ("interrupted", "Interrupted")
        assert outcome.error.startswith("its shared driver ended: FileNotFoundError: ")
        assert outcome.cause == ""
    assert len(sharing.desk.read().to_run) == 1


def test_a_driver_at_a_closed_desk_ends_at_once(hosts, copied):
    sharing = Sharing(copied("two_errored"), "two_errored", hosts=hosts)
    sharing.desk.close()
    assert sharing.run().code == EXIT_FINISHED
    assert not any(map(sharing.has_begun, sharing.trial_ids))
