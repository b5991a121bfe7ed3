"""More of ../test_trials.py: failures, pauses, points of a run, checkpoints.

Which of Ray's tests each of these stands for is in docs/conformance.md.
"""

import json
import os

import pytest

from airflow_tune_restore.restore.release import release_trials
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.failed import rows
from tests.support.ray.pair import make_pair

IS_NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


def test_errored_alone_are_resumed_and_unfinished_ones_end(hosts, tmp_path, cause):
    """One has ended, one failed with a checkpoint, one without, one runs, one was never started."""
    trials = [
        {"name": "a", "iterations": 1},
        {"name": "b", "fails_at": 2},
        {"name": "c", "fails_at": 2, "checkpoint_every": 0},
        {"name": "d", "iterations": 4},
        {"name": "e"},
    ]
    pair = make_pair(
        hosts, tmp_path, "counts", trainable="function", dies_after=5,
        env={"TUNE_MAX_PENDING_TRIALS_PG": "5"},
        trials=[{**trial, "cause": str(cause)} for trial in trials],
    )  # fmt: skip
    statuses = {trial["status"] for trial, _ in rows(pair.ours)}
    assert {"TERMINATED", "ERROR", "PENDING"} <= statuses
    cause.unlink()
    ends = pair.restore({"resume_unfinished": False, "resume_errored": True})
    ends.assert_same("dir")
    assert ends.column("status") == ["TERMINATED"] * 5
    started = dict(zip(map(_name, ends.column("config")), ends.column("rows"), strict=True))
    assert [row["started_from"] for row in started["b"]] == [0, 1, 1]
    assert [row["started_from"] for row in started["c"]] == [0, 0, 0]
    assert started["e"] == []


@pytest.mark.parametrize("point", [1, 3, 5] if not IS_NIGHTLY else range(1, 8))
def test_it_is_restored_from_every_point_of_a_run(hosts, tmp_path, cause, point):
    trials = [{"name": "a"}, {"name": "b", "fails_at": 2}, {"name": "c"}]
    pair = make_pair(
        hosts, tmp_path, "counts", trainable="Class", kind="class", dies_after=point,
        env={"TUNE_MAX_PENDING_TRIALS_PG": "1"},
        trials=[{**trial, "cause": str(cause)} for trial in trials],
    )  # fmt: skip
    cause.unlink()
    ends = pair.restore({"resume_errored": True})
    ends.assert_same(
        "dir", "checkpoint", "kept", "checkpoints", "contents", "index", "rows", "last_result"
    )
    assert ends.column("status") == ["TERMINATED"] * 3
    for trial, his in zip(ends.ours["trials"], ends.theirs["trials"], strict=True):
        iterations = [row["training_iteration"] for row in trial["rows"]]
        assert iterations == [row["training_iteration"] for row in his["rows"]]
        assert sorted(set(iterations)) == [1, 2, 3]
        assert trial["contents"][trial["checkpoint"]] == {"state.json": "3"}


def test_an_error_in_setup_is_resumed_or_restarted_from_scratch(hosts, tmp_path, cause):
    trials = [{"name": "a", "fails_at": 0, "cause": str(cause)}]
    pair = make_pair(hosts, tmp_path, "counts", trainable="Class", kind="class", trials=trials)
    again = pair.restore({"resume_errored": True})
    again.assert_same()
    assert again.column("status") == ["ERROR"]
    assert again.column("num_failures") == [2]
    cause.unlink()
    ends = pair.restore({"restart_errored": True})
    ends.assert_same("trial_id", "dir")
    assert ends.column("status") == ["TERMINATED"]
    assert ends.column("num_failures") == [0]


def test_a_restore_of_a_restore_of_a_restore(hosts, tmp_path, cause):
    """It fails twice more, and the number of failures and the rows are Ray's every time.

    Then it is in quarantine, for it failed twice in the same way; Ray knows no such thing.
    """
    trials = [{"name": "a", "iterations": 4, "fails_at": 3, "cause": str(cause)}, {"name": "b"}]
    pair = make_pair(hosts, tmp_path, "counts", trainable="function", trials=trials)
    for failures in (2, 3):
        ends = pair.restore({"resume_errored": True})
        ends.assert_same()
        assert sorted(ends.column("num_failures")) == [0, failures]
    cause.unlink()
    (failed,) = [each for each in ends.ours["trials"] if each["status"] == "ERROR"]
    release_trials(open_store(str(pair.ours)), [failed["trial_id"]], holder="test")
    ends = pair.restore({"resume_errored": True})
    ends.assert_same()
    assert ends.column("status") == ["TERMINATED", "TERMINATED"]


@pytest.mark.parametrize(("retries", "status"), [("0", "ERROR"), ("2", "TERMINATED")])
def test_a_checkpoint_that_fails_to_load_is_tried_as_often_as_ray_is_told(
    hosts, tmp_path, cause, retries, status
):
    left = tmp_path / "left"
    pair = make_pair(
        hosts, tmp_path, "fails_to_load", trainable="FailsToLoad", dies_after=2, cause=str(cause),
        left=str(left),
    )  # fmt: skip
    pair.env["TUNE_RESTORE_RETRY_NUM"] = retries
    left.write_text("2")
    case = {"uri": str(pair.theirs), "trainable": pair.trainable, "flags": {}}
    hosts.ray.call("restore", case, **pair.env)
    left.write_text("2")
    pair.restore_ours()
    theirs, ours = (pair.describe(each)["trials"] for each in (pair.theirs, pair.ours))
    for name in ("status", "num_failures", "last_result", "error_file"):
        assert ours[0][name] == theirs[0][name], name
    assert ours[0]["status"] == status


@pytest.mark.parametrize("kind", ["function", "class"])
def test_new_checkpoints_follow_the_old_ones_and_those_past_num_to_keep_go(
    hosts, tmp_path, cause, kind
):
    trials = [{"name": "a", "iterations": 5, "fails_at": 3, "cause": str(cause)}]
    pair = make_pair(
        hosts, tmp_path, "counts", kind=kind, num_to_keep=4, trials=trials,
        trainable={"function": "function", "class": "Class"}[kind],
    )  # fmt: skip
    cause.unlink()
    ends = pair.restore({"resume_errored": True})
    ends.assert_same()
    (contents,) = ends.column("contents")
    assert {name: held["state.json"] for name, held in contents.items()} == {
        f"checkpoint_{number:06}": str(number + 1) for number in range(1, 5)
    }


def test_a_checkpoint_the_trainable_asked_for_is_the_one_it_goes_on_from(hosts, tmp_path, cause):
    pair = make_pair(hosts, tmp_path, "asks_to_save", trainable="AsksToSave", cause=str(cause))
    cause.unlink()
    ends = pair.restore({"resume_errored": True})
    ends.assert_same()
    (results,) = ends.column("rows")
    assert [(row["training_iteration"], row["started_from"]) for row in results] == [
        (1, 0), (2, 0), (3, 0), (3, 2), (4, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["auto", "per_trial"])
def test_a_paused_trial_goes_on_from_its_checkpoint(hosts, tmp_path, cause, strategy):
    pair = make_pair(
        hosts, tmp_path, "paused", trainable="Class", dies_after=2, dies_with=("PAUSED",),
        is_saved=True, cause=str(cause),
    )  # fmt: skip
    assert "PAUSED" in [trial["status"] for trial, _ in rows(pair.ours)]
    ends = pair.restore(strategy=strategy)
    ends.assert_same("dir")
    assert ends.column("status") == ["TERMINATED", "TERMINATED"]
    results = next(t["rows"] for t in ends.ours["trials"] if _name(t["config"]) == "a")
    assert [row["started_from"] for row in results] == [0, 0, 2]


def _name(config: str) -> str:
    return json.loads(config)["trial"]["name"]
