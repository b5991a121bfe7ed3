"""`tune-restore restore --on ray` on a real cluster, authentication on: to the end, and Ctrl-C."""

import json
import signal

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.ray.jobs import jobs_cluster, rows
from tests.support.ray.shell import Shell


@pytest.fixture(scope="module")
def cluster():
    with jobs_cluster(1) as started:
        yield started


@pytest.fixture
def shell(cluster):
    """Starts the command; the jobs get the trainable and these variables."""

    def start(experiment, *options, **env):
        runtime_env = {
            "py_modules": [str(ROOT / "tests")],
            "env_vars": {"TUNE_TEST_HEALED": "1", **env},
        }
        on_ray = ("--on", "ray", "--address", cluster.address)
        code = ("--runtime-env-json", json.dumps(runtime_env))
        return Shell(experiment, *on_ray, *code, *options, RAY_AUTH_TOKEN=cluster.token)

    return start


def statuses(cluster):
    return sorted(job["status"] for job in cluster.call("/api/jobs/") if job["submission_id"])


def test_a_restore_runs_as_jobs_and_ctrl_c_stops_them_with_a_snapshot(cluster, shell, copied, gate):
    experiment = copied("errored")
    first = shell(experiment, **gate.env)
    first.await_line("iteration 4")  # the gate lets it do that one, and no more
    first.signal(signal.SIGINT)
    code, out, err = first.end()
    assert code == 130, out + err
    assert "Stopping. Saving snapshots, then committing what has finished." in err
    assert "0 of 1 resumed trial finished" in " ".join(out.split())
    assert statuses(cluster) == ["STOPPED"]
    trials = read_experiment(open_store(str(experiment))).trials
    assert [trial.iteration for trial in trials if not trial.is_finished] == [4]

    code, out, err = shell(experiment, "--stale-after", "0", "--json").end()
    assert code == 0, out + err
    assert [trial["iteration_after"] for trial in json.loads(out)["trials"]] == [6, 6]
    assert statuses(cluster) == ["STOPPED", "SUCCEEDED"]
    assert [1, 2, 3, 4, 5, 6] in rows(str(experiment)).values()


def test_a_cluster_that_does_not_let_us_in_is_refused_before_anything_is_leased(cluster, copied):
    experiment = copied("errored")
    on_ray = ("--on", "ray", "--address", cluster.address)
    code, _, err = Shell(experiment, *on_ray, RAY_AUTH_TOKEN="wrong").end()
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert not (experiment / ".tune_restore").exists()
