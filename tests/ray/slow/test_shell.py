"""`tune-restore restore` on a real experiment: the happy end, and Ctrl-C in the middle."""

import json
import signal
import time

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.storage.fs import open_store
from tests.support.ray.shell import Shell
from tests.support.waiting import PATIENCE_SECONDS


def test_ctrl_c_saves_commits_and_the_next_restore_goes_on(copied, gate):
    experiment = copied("errored")
    shell = Shell(experiment, **gate.env)
    shell.await_line("iteration 4")  # the gate lets it do that one, and no more
    shell.signal(signal.SIGINT)
    code, out, err = shell.end()
    assert code == 130, out + err
    assert "Stopping" in err
    assert "0 of 1 resumed trial finished" in " ".join(out.split())
    unfinished = [
        t for t in read_experiment(open_store(str(experiment))).trials if not t.is_finished
    ]
    assert len(unfinished) == 1

    # at once: what we wrote ourselves is no sign of a living driver only if we say so
    code, out, err = Shell(experiment, "--stale-after", "0", "--json").end()
    assert code == 0, err
    assert [t["iteration_after"] for t in json.loads(out)["trials"]] == [6, 6]
    rows = (next(experiment.glob("*fails*")) / "result.json").read_text().splitlines()
    assert [json.loads(row)["training_iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_restore_that_was_killed_is_settled_by_the_next(copied, gate):
    experiment = copied("errored")
    shell = Shell(experiment, **gate.env)
    shell.await_line("Restored on")
    shell.signal(signal.SIGKILL)
    shell.end()

    code, _, err = Shell(experiment, "--stale-after", "0").end()
    assert code == 3
    assert "is being restored by tune-restore of" in " ".join(err.split())
    out, err, code = "", "", 3
    deadline = time.monotonic() + PATIENCE_SECONDS
    while code == 3 and time.monotonic() < deadline:  # until its lease has run out
        code, out, err = Shell(experiment, "--stale-after", "0").end()
    assert code == 0, out + err
    assert "A restore that died was committed first" in " ".join(err.split())
    rows = (next(experiment.glob("*fails*")) / "result.json").read_text().splitlines()
    iterations = [json.loads(row)["training_iteration"] for row in rows]
    assert sorted(set(iterations)) == [1, 2, 3, 4, 5, 6]
