"""The shell and its runner at an S3 server whose endpoint is part of the address."""

import json
import subprocess
import sys

from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.failed import environment
from tests.support.ray.pair import make_pair


def test_an_address_with_an_endpoint_in_it_leads_shell_runner_and_ray_there(
    hosts, s3, tmp_path, cause
):
    trials = [{"name": "a", "iterations": 4, "fails_at": 3, "cause": str(cause)}]
    pair = make_pair(hosts, tmp_path, "counts", trainable="function", trials=trials)
    cause.unlink()
    place = s3.upload(pair.ours, "by-address/counts")
    address = f"{place}?scheme=http&endpoint_override={s3.endpoint.partition('://')[2]}"
    keys = {name: value for name, value in s3.env.items() if name.endswith("_KEY_ID")}
    keys["AWS_SECRET_ACCESS_KEY"] = s3.env["AWS_SECRET_ACCESS_KEY"]
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}  # what the address says wins
    done = subprocess.run(
        [
            *(sys.executable, "-m", "airflow_tune_restore.cli.app", "restore", address),
            *("--trainable", pair.trainable, "--resume-errored", "--stale-after", "0"),
            *("--address", hosts.address, "--json"),
        ],
        cwd=ROOT, env=environment(**keys, **nowhere),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["experiment"] == address
    (trial,) = summary["trials"]
    assert (trial["status_after"], trial["iteration_after"]) == ("TERMINATED", 4)
    report = scan(open_store(address))[0]  # the store has the state that Ray and the commit wrote
    assert (report.experiment, report.state_file) == (address, summary["state_file"])
