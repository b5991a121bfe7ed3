"""A whole restore on Google Cloud Storage and Azure (emulators), through the same code; two at once."""

import json
import re
import subprocess
import sys

import pytest

from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.failed import TRAINABLES, environment
from tests.support.waiting import eventually

COMMAND = [sys.executable, "-m", "airflow_tune_restore.cli.app"]
READ_BACK = """
import json, sys
from ray.tune import ExperimentAnalysis
from airflow_tune_restore.storage.fs import arrow_filesystem
filesystem, path = arrow_filesystem(sys.argv[1])
analysis = ExperimentAnalysis(path, storage_filesystem=filesystem)
rows = {t.trial_id: (t.status, t.last_result["training_iteration"]) for t in analysis.trials}
print("ROWS " + json.dumps(sorted(rows.values())))
"""


@pytest.fixture
def errored(failed_experiments):
    return failed_experiments["errored"]


def upload(directory, uri):
    store = open_store(uri)
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            store.put(path.relative_to(directory).as_posix(), path.read_bytes())
    return uri


def start(uri, env, *options):
    return subprocess.Popen(
        [
            *COMMAND,
            "restore",
            uri,
            "--trainable",
            TRAINABLES["errored"],
            "--resume-errored",
            *options,
        ],
        cwd=ROOT,
        env=environment(TUNE_TEST_HEALED="1", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ["gcs", "azure"])
def test_an_experiment_comes_back_on_an_emulated_cloud(kind, request, errored):
    server = request.getfixturevalue(kind)
    uri = upload(errored, f"{server.url}/sweeps/errored")
    process = start(uri, server.env, "--json")
    out, err = process.communicate()
    assert process.returncode == 0, out[-2000:] + err[-3000:]
    summary = json.loads(out)
    assert [t["status_after"] for t in summary["trials"]] == ["TERMINATED", "TERMINATED"]

    read = subprocess.run(
        [sys.executable, "-c", READ_BACK, uri],
        cwd=ROOT,
        env=environment(**server.env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'ROWS [["TERMINATED", 6], ["TERMINATED", 6]]' in read.stdout, read.stderr[-3000:]
    committed = open_store(uri).get(summary["state_file"])
    for secret in (
        "test-secret-canary",
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq",
    ):
        assert secret.encode() not in committed
        assert secret.encode().hex().encode() not in committed


def test_of_two_restores_started_together_one_wins_and_the_other_names_it(s3, errored, gate):
    uri = upload(errored, f"{s3.url}/together/errored")
    racers = [start(uri, {**s3.env, **gate.env}) for _ in range(2)]
    eventually(lambda: any(racer.poll() is not None for racer in racers))
    gate.open()  # the winner waited for it, its lease in its hand
    ended = [(racer.communicate(), racer.returncode) for racer in racers]
    assert sorted(code for _, code in ended) == [0, 3], ended
    ((_, refusal),) = [texts for texts, code in ended if code == 3]
    # whether it looked before the other took the lease, or after
    assert re.search(r"(restored by|of) tune-restore of .+, pid \d+", " ".join(refusal.split()))
    again = start(uri, s3.env)
    out, _ = again.communicate()
    assert again.returncode == 0
    assert "Nothing to restore" in out
