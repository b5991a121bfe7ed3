"""`tune-restore restore --address`: the shell's own process and its runner's join a Ray that is there."""

import json
import subprocess
import sys

from airflow_tune_restore.cli.trainables import parse_trainables
from airflow_tune_restore.restore.flags import ResumeFlags
from tests.support import ROOT
from tests.support.experiments.failed import environment
from tests.support.ray.pair import make_pair


def test_the_shell_restores_on_a_ray_that_is_there_and_leaves_it(hosts, tmp_path, cause):
    trials = [{"name": "a", "iterations": 4, "fails_at": 3, "cause": str(cause)}]
    pair = make_pair(hosts, tmp_path, "counts", trainable="function", trials=trials)
    cause.unlink()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "airflow_tune_restore.cli.app", "restore", str(pair.ours)),
            *("--trainable", pair.trainable, "--resume-errored", "--stale-after", "0"),
            *("--address", hosts.address, "--json"),
        ],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = json.loads(done.stdout)["trials"]
    assert (trial["status_after"], trial["iteration_after"]) == ("TERMINATED", 4)
    (trial,) = pair.describe(pair.ours)["trials"]  # by a driver of that Ray
    assert [row["training_iteration"] for row in trial["rows"]] == [1, 2, 3, 4]
    assert [row["started_from"] for row in trial["rows"]] == [0, 0, 2, 2]


def test_two_trainables_in_one_file_each_restore_their_own_experiment(hosts, tmp_path, cause):
    trials = [{"name": "a", "iterations": 4, "fails_at": 3, "cause": str(cause)}]
    pairs = {
        name: make_pair(
            hosts, tmp_path / name, "counts", trainable=name, kind=name.lower(), trials=trials
        )
        for name in ("function", "Class")
    }
    cause.unlink()
    file = tmp_path / "trainables.toml"
    file.write_text(
        f"""
        function = {{ trainable = "{pairs["function"].trainable}", resume_errored = true }}
        Class = {{ trainable = "{pairs["Class"].trainable}", restart_errored = true }}
        """
    )
    recipes = parse_trainables([str(file)], [])
    for name, starts in (("function", [0, 0, 2, 2]), ("Class", [0, 0, 0, 0])):
        pair = pairs[name]
        hosts.restore_by_us(str(pair.ours), recipes, flags=ResumeFlags(), env=pair.env)
        (trial,) = pair.describe(pair.ours)["trials"]
        assert trial["rows"][-1]["training_iteration"] == 4
        assert [row["started_from"] for row in trial["rows"]] == starts
