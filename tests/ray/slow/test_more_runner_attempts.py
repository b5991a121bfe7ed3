"""More of ../test_runner_attempts.py: a restarted trial, and a check by a process of its own."""

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_INTERRUPTED
from airflow_tune_restore.restore.flags import ResumeFlags
from tests.support.experiments.failed import Gate
from tests.support.ray.real_restore import Restoring

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


def test_check_says_beforehand_whether_a_trainable_fits(copied):
    directory = copied("errored")
    restoring = Restoring(directory, "errored")
    asked = {"experiment": directory.as_posix(), "trainable_name": "counting"}
    restoring.launcher.check(trainable="tests.trainables:counting", **asked)
    with pytest.raises(InvalidInputError, match="the experiment was made with 'counting'"):
        restoring.launcher.check(trainable="tests.trainables:other", **asked)
    with pytest.raises(InvalidInputError, match="Invalid `param_space`"):
        restoring.launcher.check(
            trainable="tests.trainables:counting",
            param_space="tests.trainables:UNFITTING_PARAM_SPACE",
            **asked,
        )
