"""A plan task that is retried or cleared loses no restore that an earlier try has started."""

import pytest

from airflow_tune_restore.exceptions import LeaseLostError, StorageError
from airflow_tune_restore.operators import build_restore_plan, prepare_restores
from airflow_tune_restore.operators.check_restores import CheckRestoresOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.check import CheckAnswer, MatchedBy
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.context import make_context
from tests.support.airflow.states import FAILED, RETRIED, SUCCESS, plan, run
from tests.support.experiments.built import make_experiment, make_row

SLOW_DOWN = "503 Slow Down"


def make(directory, *trial_ids):
    return make_experiment(directory, [make_row(t, status="ERROR") for t in trial_ids or ("t",)])


def try_again(experiments, number=2, max_tries=1, **arguments):
    """Return the state of a try of the plan, its items, and the outcomes by experiment's name."""
    context = make_context(try_number=number, max_tries=max_tries)
    state, items, pushed = run(plan(experiments, **{"trainable": None, **arguments}), context)
    outcomes = {item["experiment"].rpartition("/")[2]: item for item in pushed["outcomes"]}
    return state, items, outcomes


def commit(outcomes):
    """Return what becomes of each experiment, and the state of done."""
    outcomes = list(outcomes.values())
    _, _, summary = run(CommitRestoreOperator(task_id="commit", outcomes=outcomes))
    done, _, _ = run(CheckRestoresOperator(task_id="done", outcomes=outcomes))
    return [line["outcome"] for line in summary["experiments"]], done


def is_leased(experiment, restore_id):
    try:
        lease.check_held(open_store(str(experiment)), restore_id)
    except LeaseLostError:
        return False
    return True


@pytest.fixture
def two(tmp_path):
    return [make(tmp_path / name) for name in "ab"]


def fail(monkeypatch, name):
    """Let the store of experiment `a` fail where the plan task calls a function."""
    module = build_restore_plan if name == "start_restore" else prepare_restores
    original = getattr(module, name)

    def slow(first, *rest, **named):
        if getattr(first, "store", first).uri.endswith("/a"):
            raise StorageError(SLOW_DOWN)
        return original(first, *rest, **named)

    monkeypatch.setattr(module, name, slow)


def test_the_limit_of_mapped_tasks_puts_off_no_started_restore(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
    large, small = make(tmp_path / "a", "t1", "t2"), make(tmp_path / "c")
    other = open_store(str(small))
    held = lease.acquire(other, restore_id="other", holder="eva", ttl_seconds=900)
    try_again([large, small], number=1)
    lease.release(other, held)
    _, items, outcomes = try_again([large, small])
    assert [outcomes[name]["outcome"] for name in "ac"] == ["restored", "waiting"]
    assert [item["trial_id"] for item in items] == ["t1", "t2"]
    assert "this one takes 2" in outcomes["c"]["reason"]


@pytest.mark.parametrize("broken", ["prepare_restore", "start_restore"])
def test_one_that_cannot_be_read_now_is_asked_again_and_then_committed(two, monkeypatch, broken):
    _, _, first = try_again(two, number=1)
    restore_id = first["a"]["restore_id"]
    fail(monkeypatch, broken)
    state, _, outcomes = try_again(two, max_tries=2)
    assert (state, outcomes["a"]["restore_id"]) == (RETRIED, restore_id)
    state, items, outcomes = try_again(two, number=3, max_tries=2)
    assert (state, len(items)) == (SUCCESS, 1)
    assert (outcomes["a"]["outcome"], outcomes["a"]["reason"]) == ("restored", SLOW_DOWN)
    assert is_leased(two[0], restore_id)
    assert commit(outcomes) == (["trials_failed", "trials_failed"], FAILED)
    assert not is_leased(two[0], restore_id)


@pytest.mark.parametrize("was_started", [True, False])
def test_a_store_that_answers_nothing_leaves_it_to_the_commit(two, monkeypatch, was_started):
    _, _, first = try_again(two if was_started else two[1:], number=1)
    for name in ("prepare_restore", "find_started"):
        fail(monkeypatch, name)
    state, _, outcomes = try_again(two)
    assert (state, outcomes["a"]["outcome"]) == (SUCCESS, "restored")
    if was_started:
        assert outcomes["a"]["restore_id"] == first["a"]["restore_id"]
    expected = ["trials_failed" if was_started else "refused", "trials_failed"]
    assert commit(outcomes) == (expected, FAILED)


def test_a_started_restore_is_not_named_by_its_trainable_alone(tmp_path, launcher):
    launcher.answer = CheckAnswer(experiment="", matched_by=MatchedBy.MODULE)
    experiments = [make(tmp_path / team / team) for team in "xy"]
    for number in (1, 2):
        _, _, outcomes = try_again(experiments, number, trainable="m:train")
        assert [item["by_name"] for item in outcomes.values()] == [False, False]


def test_two_spellings_of_one_experiment_are_one_restore(tmp_path):
    experiment = make(tmp_path / "a")
    (tmp_path / "q").mkdir()
    spellings = [experiment, f"{experiment}/", tmp_path / "q" / ".." / "a"]
    _, items, pushed = run(plan(spellings, trainable=None))
    assert len(items) == 1
    assert [item["outcome"] for item in pushed["outcomes"]] == ["restored", *["left_alone"] * 2]
    assert pushed["outcomes"][1]["reason"] == f"it is the same experiment as {experiment}"
