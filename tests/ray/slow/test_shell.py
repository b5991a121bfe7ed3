"""`tune-restore restore` on a real experiment: the happy end, and Ctrl-C in the middle."""

import json
import os
import signal
import subprocess
import sys
import time

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.failed import TRAINABLES, environment
from tests.support.waiting import PATIENCE_SECONDS


def start(experiment, *options, **env):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "airflow_tune_restore.cli.app", "restore", str(experiment)),
            *("--trainable", TRAINABLES["errored"], "--resume-errored", *options),
        ],
        cwd=ROOT,
        env=environment(TUNE_TEST_HEALED="1", COLUMNS="160", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has them ignore it, and all that they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_ctrl_c_saves_commits_and_the_next_restore_goes_on(copied, gate):
    experiment = copied("errored")
    process = start(experiment, **gate.env)
    seen = ""
    while "iteration 4" not in seen:  # the gate lets it do that one, and no more
        line = process.stderr.readline()
        assert line, seen
        seen += line
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1, out + err
    assert "Stopping" in err
    assert "0 of 1 resumed trials finished" in " ".join(out.split())
    unfinished = [
        t for t in read_experiment(open_store(str(experiment))).trials if not t.is_finished
    ]
    assert len(unfinished) == 1

    # at once: what we wrote ourselves is no sign of a living driver only if we say so
    again = start(experiment, "--stale-after", "0", "--json")
    out, err = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, err
    assert [t["iteration_after"] for t in json.loads(out)["trials"]] == [6, 6]
    rows = (next(experiment.glob("*fails*")) / "result.json").read_text().splitlines()
    assert [json.loads(row)["training_iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_restore_that_was_killed_is_settled_by_the_next(copied, gate):
    experiment = copied("errored")
    process = start(experiment, **gate.env)
    seen = ""
    while "Restored on" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    refused = start(experiment, "--stale-after", "0")
    _, err = refused.communicate()
    assert refused.returncode == 3
    assert "is being restored by tune-restore of" in " ".join(err.split())
    out, err, code = "", "", 3
    deadline = time.monotonic() + PATIENCE_SECONDS
    while code == 3 and time.monotonic() < deadline:  # until its lease has run out
        again = start(experiment, "--stale-after", "0")
        out, err = again.communicate(timeout=PATIENCE_SECONDS)
        code = again.returncode
    assert code == 0, out + err
    assert "A restore that died was committed first" in " ".join(err.split())
    rows = (next(experiment.glob("*fails*")) / "result.json").read_text().splitlines()
    iterations = [json.loads(row)["training_iteration"] for row in rows]
    assert sorted(set(iterations)) == [1, 2, 3, 4, 5, 6]
