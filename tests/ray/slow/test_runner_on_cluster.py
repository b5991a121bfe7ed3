"""A runner that joins a Ray cluster which is there already, and leaves it as it was."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.launch.process import kill_session
from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_INTERRUPTED
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.runner.ray_session import STARTS
from tests.support import ROOT
from tests.support.experiments.failed import environment
from tests.support.ray.real_restore import Restoring
from tests.support.storage.servers import free_port
from tests.support.waiting import eventually


@pytest.fixture
def cluster(tmp_path):
    """A one-node cluster in a session of its own; its workers know nothing of our PYTHONPATH."""
    env = environment(TUNE_TEST_HEALED="1")
    env.pop("PYTHONPATH")
    log = tmp_path / "ray.log"
    for _ in range(STARTS):
        port = free_port()
        log.write_text("")
        head = subprocess.Popen(
            [Path(sys.executable).with_name("ray").as_posix(), "start", "--head", "--block",
             "--num-cpus=2", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"],
            env=env, cwd=tmp_path, stdout=log.open("a"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        # it says so once its node is known to the head
        eventually(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None)  # noqa: B023
        if head.poll() is None:
            break
    else:
        raise RuntimeError(f"Ray did not start: {log.read_text()}")
    yield f"127.0.0.1:{port}"
    os.kill(head.pid, signal.SIGKILL)
    kill_session(head.pid)
    head.wait()


def test_a_trial_is_stopped_and_resumed_on_a_cluster(copied, cluster, gate):
    restoring = Restoring(copied("errored"), "errored")
    trials = {"env_vars": {"PYTHONPATH": ROOT.as_posix(), **gate.env}}  # the cluster has its own
    request, process, seen = restoring.run_until(4, address=cluster, runtime_env=trials)
    process.stop()
    ran = restoring.finish(request, process, tuple(seen))
    assert ran.code == EXIT_INTERRUPTED, ran.output

    ran = restoring.run(address=cluster)
    assert ran.code == EXIT_FINISHED, ran.output
    assert "Connecting to existing Ray cluster" in ran.output
    assert restoring.iterations() == [1, 2, 3, 4, 5, 6]


def test_a_trial_that_ran_out_of_memory_asks_a_cluster_for_more(copied, cluster):
    restoring = Restoring(copied("errored"), "errored")
    asked = 512.0 * 1024**2
    resources = {**restoring.trial.resources, "memory": asked}
    ran = restoring.run(address=cluster, resources=resources)
    assert ran.code == EXIT_FINISHED, ran.output
    assert ran.outcome.metrics["memory_asked"] == asked
    commit_restore(restoring.store, restoring.restore_id)
    # the row says what the trial asks for by itself
    trials = {trial.trial_id: trial for trial in read_experiment(restoring.store).trials}
    assert trials[restoring.trial.trial_id].resources == {"CPU": 1.0}


def test_more_memory_than_any_node_has_is_not_waited_for(copied, cluster):
    restoring = Restoring(copied("errored"), "errored")
    ran = restoring.run(address=cluster, resources={"CPU": 1.0, "memory": 2.0**50})
    assert ran.code == EXIT_FINISHED, ran.output
    assert 0 < ran.outcome.metrics["memory_asked"] < 2.0**50
