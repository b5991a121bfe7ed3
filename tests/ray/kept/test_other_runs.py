"""A name that was used again: what the first run left is restored all the same (ray#35812).

More of the same: slow/test_more_of_other_runs.py.
"""

import json
import subprocess
import sys

from airflow_tune_restore.experiments.older_runs import describe_older_runs, older_states
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.failed import environment
from tests.support.ray.compared import RESUMED
from tests.support.ray.pair import NAME, RECIPES, make_pair
from tests.support.records import plan_night


def failing(cause):
    return [{"name": "a", "iterations": 4, "fails_at": 3, "cause": str(cause)}]


def use_again(hosts, directory):
    question = {
        "function": f"{RECIPES}:used_again",
        "arguments": {"directory": str(directory.parent), "name": NAME},
    }
    hosts.ray.call("ask", question)


def shell(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "airflow_tune_restore.cli.app", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip


def test_the_rows_win_over_a_tuner_pkl_of_another_run(hosts, tmp_path, cause):
    """Ray's copy has the run's own tuner.pkl: without callbacks and stoppers the end is the same."""
    pair = make_pair(hosts, tmp_path, "counts", trainable="function", trials=failing(cause))
    use_again(hosts, pair.ours)
    assert (pair.ours / "tuner.pkl").read_bytes() != (pair.theirs / "tuner.pkl").read_bytes()
    cause.unlink()

    refused = shell("restore", str(pair.ours), "--trainable", f"{RECIPES}:Class",
                    "--resume-errored", "--stale-after", "0")  # fmt: skip
    assert refused.returncode == 2, refused.stdout + refused.stderr
    for words in ("has the name 'Class' in Tune", "were run with 'function'", "--ignore-tuner"):
        assert words in refused.stderr
    assert not (pair.ours / ".tune_restore").exists()

    ends = pair.restore(RESUMED)
    ends.assert_same()
    assert ends.column("status") == ["TERMINATED"]


def test_trials_that_ray_started_over_are_no_older_runs(hosts, tmp_path, cause):
    pair = make_pair(hosts, tmp_path, "counts", trainable="function", trials=failing(cause))
    before = read_experiment(open_store(str(pair.theirs)))
    case = {
        "uri": str(pair.theirs),
        "trainable": pair.trainable,
        "flags": {"restart_errored": True},
    }
    hosts.ray.call("restore", case, **pair.env)
    store = open_store(str(pair.theirs))
    after = read_experiment(store)
    assert {t.trial_id for t in before.trials}.isdisjoint(t.trial_id for t in after.trials)
    older = older_states(store.list_dir(), after.state_file.name)
    assert [entry.name for entry in older] == [before.state_file.name]
    assert describe_older_runs(store, older, after.state) == ()
    assert plan_night(store, flags=ResumeFlags()).warnings == ()


def test_one_run_of_all_passes_over_the_trials_of_another_trainable(hosts, copied):
    """Ray alone would start the experiment over, for nobody has registered the other trainable."""
    directory = copied("two_errored")
    (state,) = directory.glob("experiment_state-*.json")
    body = json.loads(state.read_text())
    (index,) = [i for i, (row, _) in enumerate(body["trial_data"]) if "fails sparsely" in row]
    row = json.loads(body["trial_data"][index][0]) | {"trainable_name": "another"}
    body["trial_data"][index][0] = json.dumps(row, indent=2)
    state.write_text(json.dumps(body))

    summary = hosts.restore_by_us(
        str(directory), "tests.trainables:counting", strategy="whole_experiment",
        flags=ResumeFlags.from_flags(resume_errored=True), env={"TUNE_TEST_HEALED": "1"},
    )  # fmt: skip
    after = {change.trial_id: change.status_after.value for change in summary.changes}
    other = after.pop(row["trial_id"])
    assert (other, set(after.values())) == ("ERROR", {"TERMINATED"})
