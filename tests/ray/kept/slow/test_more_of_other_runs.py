"""More of names that were used again, each restored both ways."""

import shutil
from pathlib import Path

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.fs import open_store
from tests.support.ray.compared import RESUMED
from tests.support.ray.pair import NAME, RECIPES, Pair, make_pair
from tests.support.records import plan_night


def make_failed_pair(hosts, tmp_path, cause) -> Pair:
    trials = [{"name": "a", "iterations": 4, "fails_at": 3, "cause": str(cause)}]
    return make_pair(hosts, tmp_path, "counts", trainable="function", trials=trials)


def plan(directory) -> RestorePlan:
    store = open_store(str(directory))
    flags = ResumeFlags.from_flags(resume_errored=True)
    return plan_night(store, flags=flags)


def test_a_tuner_pkl_that_is_ignored_needs_nothing_that_is_gone(hosts, tmp_path, cause):
    pair = make_failed_pair(hosts, tmp_path, cause)
    (pair.ours / "tuner.pkl").write_bytes(b"ctests.gone\nCallback\n.")
    cause.unlink()
    ends = pair.restore(RESUMED, ignore_tuner=True)
    ends.assert_same()
    assert ends.column("status") == ["TERMINATED"]


def test_what_an_older_run_left_comes_back_as_the_plan_advises(hosts, tmp_path, cause):
    pair = make_failed_pair(hosts, tmp_path, cause)
    first = read_experiment(open_store(str(pair.ours)))
    recipe = {
        "tuner": f"{RECIPES}:counts",
        "arguments": {"directory": str(pair.ours.parent), "name": NAME, "kind": "class",
                      "trials": [{"name": "b"}]},
    }  # fmt: skip
    hosts.ray.call("make", recipe, **pair.env)

    planned = plan(pair.ours)
    (note,) = planned.warnings
    assert note.startswith(f"{first.state_file.name} of an older run holds 1 trial (1 ERROR)")

    time = first.state_file.name.removeprefix("experiment_state-").removesuffix(".json")
    assert f"a later time than {time}, then plan the copy" in note
    pair.ours = Path(shutil.copytree(pair.ours, tmp_path / "elsewhere" / pair.ours.name))
    for path in [path for path in pair.ours.iterdir() if path.is_file()]:
        if path.name == "tuner.pkl" or path.stem[-len(time) :] > time:
            path.unlink()
    planned = plan(pair.ours)
    assert (planned.base.name, planned.samples_left) == (first.state_file.name, 0)

    cause.unlink()
    ends = pair.restore(RESUMED)
    ends.assert_same()
    assert ends.column("status") == ["TERMINATED"]
