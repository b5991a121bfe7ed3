"""More of ../test_runner_attempts.py: a restarted trial, a lost parent, a check by its own process."""

import subprocess
import sys

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.check import CheckRequest, ExperimentToCheck, Problem
from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_INTERRUPTED
from airflow_tune_restore.restore.flags import ResumeFlags
from tests.support import ROOT
from tests.support.experiments.failed import Gate, environment
from tests.support.ray.real_restore import RESTORE_ID, Restoring, wrote
from tests.support.waiting import eventually

EVERY = [1, 2, 3, 4, 5, 6]


def test_a_restarted_trial_keeps_its_new_id_and_directory_when_it_is_attempted_again(
    copied, tmp_path
):
    directory = copied("errored")
    before = sorted(path.name for path in directory.iterdir() if path.is_dir())
    flags = ResumeFlags.from_flags(restart_errored=True)
    gate = Gate(tmp_path / "gate-is-open", before=3)
    restoring = Restoring(directory, "errored", env=gate.env, flags=flags)
    new_id = restoring.trial.new_trial_id
    request, process, seen = restoring.run_until(2)
    process.stop()
    ran = restoring.finish(request, process, tuple(seen))
    assert ran.code == EXIT_INTERRUPTED, ran.output
    assert ran.outcome.final_trial_id == new_id

    gate.open()
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert ran.outcome.final_trial_id == new_id
    assert ran.outcome.metrics["started_from"] in (1, 2)
    trial, run = restoring.snapshot(2)
    assert (trial["trial_id"], trial["status"]) == (new_id, "TERMINATED")
    assert run["num_failures"] == 0
    after = sorted(path.name for path in directory.iterdir() if path.is_dir())
    assert set(after) - set(before) == {trial["relative_logdir"], layout.ROOT}
    assert restoring.iterations(trial["relative_logdir"]) == EVERY
    assert restoring.csv_iterations(trial["relative_logdir"]) == EVERY
    assert restoring.iterations() == [1, 2, 3]  # the old trial's


def test_an_attempt_ends_with_a_snapshot_when_whoever_started_it_is_killed(copied, gate):
    directory = copied("errored")
    restoring = Restoring(directory, "errored")
    request = restoring.claim()
    code = (
        "import sys, time\n"
        "from airflow_tune_restore.launch.local import LocalLauncher\n"
        "from airflow_tune_restore.protocol.request import RunnerRequest\n"
        "request = RunnerRequest.from_json(sys.argv[1])\n"
        "runner = LocalLauncher(pythonpath=[sys.argv[2]]).start(request)\n"
        "print(runner.pid, flush=True)\n"
        "time.sleep(3600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, request.to_json().decode(), ROOT.as_posix()],
        env=environment(TUNE_TEST_HEALED="1", **gate.env),
        stdout=subprocess.PIPE,
        text=True,
    )
    runner = int(parent.stdout.readline())
    eventually(lambda: wrote(restoring, 4))
    parent.kill()
    parent.wait()
    eventually(lambda: _members(runner) == [])
    outcome = AttemptRecords(restoring.store, RESTORE_ID, request.trial_id).outcome(1)
    assert outcome is not None
    assert (outcome.result, outcome.iteration) == ("interrupted", 4)
    assert restoring.iterations() == EVERY[:4]


def test_one_process_checks_beforehand_whether_a_trainable_fits(copied):
    directory = copied("errored")
    asked = [
        ExperimentToCheck(experiment=experiment.as_posix(), trainable_name=name)
        for experiment, name in ((directory, "counting"), (copied("class"), "Counter"))
    ]
    launcher = Restoring(directory, "errored").launcher

    def problems(**given):
        answers = launcher.check(CheckRequest(experiments=asked, **given))
        return [(answer.problem, answer.message) for answer in answers]

    fits, misfit = problems(trainable="tests.trainables:counting")
    assert fits == (None, "")
    assert misfit[0] is Problem.MISFIT
    assert "the experiment was made with 'Counter'" in misfit[1]
    (unfit, _) = problems(
        trainable="tests.trainables:counting",
        param_space="tests.trainables:UNFITTING_PARAM_SPACE",
    )
    assert unfit[0] is Problem.REFUSED
    assert "Invalid `param_space`" in unfit[1]
    with pytest.raises(InvalidInputError, match="has no 'missing'"):
        problems(trainable="tests.trainables:missing")
