"""Where an experiment lies, and what a limited searcher waits for: behaviours that Ray's tests pin.

Which of Ray's tests each of these stands for is in docs/conformance.md.
"""

import shutil

import pytest

from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.storage.fs import open_store
from tests.support.ray.pair import make_pair


@pytest.fixture
def errored(hosts, tmp_path):
    """One trial that failed with a checkpoint; two checkpoints are kept. The cause is gone."""
    cause = tmp_path / "cause"
    cause.touch()
    trials = [{"name": "a", "iterations": 4, "fails_at": 3, "cause": str(cause)}]
    pair = make_pair(hosts, tmp_path, "counts", trainable="function", num_to_keep=2, trials=trials)
    cause.unlink()
    return pair


def test_a_moved_and_renamed_experiment_leaves_nothing_at_its_old_place(errored, tmp_path):
    """It was made beside Ray's copy; both copies are moved and renamed, and the old place removed."""
    for whose in ("theirs", "ours"):
        target = tmp_path / f"new {whose}" / "renamed"
        target.parent.mkdir()
        shutil.move(getattr(errored, whose), target)
        setattr(errored, whose, target)
    shutil.rmtree(tmp_path / "made")
    ends = errored.restore({"resume_errored": True})
    ends.assert_same()
    (checkpoints,) = ends.column("checkpoints")
    assert checkpoints == ["checkpoint_000002", "checkpoint_000003"]
    assert not (tmp_path / "made").exists()


def test_a_relative_path_is_where_we_stand(errored, tmp_path, monkeypatch):
    monkeypatch.chdir(errored.ours.parent)
    relative = errored.ours.relative_to(errored.ours.parent)
    store = open_store(str(relative))
    assert store.uri == str(errored.ours)
    errored.ours = relative
    errored.restore_ours({"resume_errored": True})
    errored.ours = store.uri
    (trial,) = errored.describe(errored.ours)["trials"]
    assert trial["status"] == "TERMINATED"


def test_only_the_root_of_an_experiment_is_one(errored, tmp_path):
    def found(path):
        reports = scan(open_store(str(path)), stale_after=DEFAULT_STALE_AFTER)
        return [report.experiment for report in reports]

    root = errored.ours
    assert found(root) == found(root.parent) == [str(root)]
    (trial,) = [path for path in root.glob("function_*") if path.is_dir()]
    assert found(trial) == []


@pytest.mark.parametrize("unfinished", ["skip", "restart"])
def test_a_limited_searcher_does_not_wait_for_a_trial_that_is_not_resumed(
    hosts, tmp_path, unfinished
):
    """Ray waits for ever: the searcher in the state counts the trial as alive (2.60)."""
    pair = make_pair(
        hosts, tmp_path, "counts", trainable="function", dies_after=1, concurrent=1, is_saved=True,
        trials=[{"name": "a"}, {"name": "b"}],
    )  # fmt: skip
    flags = {"per_status": {"unfinished": unfinished}}
    case = {"uri": str(pair.theirs), "trainable": pair.trainable, "flags": flags}
    assert hosts.ray.call("restore", case, **pair.env)["hung"]
    pair.restore_ours(flags)
    trials = pair.describe(pair.ours)["trials"]
    assert [trial["status"] for trial in trials] == ["TERMINATED", "TERMINATED"]
    assert len(trials[1]["rows"]) == 3


@pytest.mark.parametrize("unfinished", ["skip", "restart"])
def test_nor_does_it_in_one_run_of_all(hosts, tmp_path, unfinished):
    pair = make_pair(
        hosts, tmp_path, "counts", trainable="function", dies_after=1, concurrent=1, is_saved=True,
        trials=[{"name": "a"}, {"name": "b"}],
    )  # fmt: skip
    pair.restore_ours({"per_status": {"unfinished": unfinished}}, strategy="whole_experiment")
    trials = pair.describe(pair.ours)["trials"]
    assert [trial["status"] for trial in trials] == ["TERMINATED", "TERMINATED"]
