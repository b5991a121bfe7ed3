"""More of ../test_runner_resume.py: kinds of trainables, budgets, what is kept."""

import json
import shutil

import pytest

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import EXIT_FAILED, EXIT_FINISHED
from airflow_tune_restore.restore.flags import ResumeFlags
from tests.support.experiments.failed import save_rarely
from tests.support.ray.real_restore import RESTORE_ID, Restoring

EVERY = [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "kind", ["class", "registered", "with_parameters", "with_resources", "trainer"]
)
def test_every_kind_of_trainable_resumes(hosts, copied, kind):
    restoring = Restoring(copied(kind), kind, hosts=hosts)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == EVERY
    assert ran.outcome.metrics["started_from"] == 3


def test_unfinished_trials_of_a_killed_driver_resume_or_start(hosts, copied):
    restoring = Restoring(copied("killed"), "killed", hosts=hosts, flags=ResumeFlags())
    hanging = next(trial for trial in restoring.plan.to_run if trial.status == "RUNNING")
    waiting = next(trial for trial in restoring.plan.to_run if trial.status == "PENDING")

    restoring.trial = hanging
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == EVERY
    assert ran.outcome.metrics["started_from"] == 2

    restoring.trial = waiting
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    trial, _ = restoring.snapshot()
    assert trial["trial_id"] == waiting.trial_id
    assert restoring.iterations(trial["relative_logdir"]) == EVERY


def test_a_spent_failure_budget_stays_spent(hosts, copied):
    restoring = Restoring(copied("retries"), "retries", hosts=hosts, healed=False)
    ran = restoring.run()
    assert ran.code == EXIT_FAILED, ran.output
    assert (ran.outcome.result, ran.outcome.status) == ("failed", "ERROR")
    assert ran.outcome.error_type == "RuntimeError"
    assert ran.outcome.error == "out of luck at iteration 4"
    _, run = restoring.snapshot()
    assert run["num_failures"] == 3


def test_a_fresh_budget_gives_rays_own_retries_back(hosts, copied):
    restoring = Restoring(
        copied("retries"), "retries", hosts=hosts, healed=False, fresh_budget=True
    )
    ran = restoring.run()
    assert ran.code == EXIT_FAILED, ran.output
    _, run = restoring.snapshot()
    assert run["num_failures"] == 2


def test_num_to_keep_is_kept_and_a_fitting_param_space_is_taken(hosts, copied):
    directory = copied("kept")
    restoring = Restoring(directory, "kept", hosts=hosts)
    ran = restoring.run(param_space="tests.trainables:fitting_param_space")
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == EVERY
    kept = [p.name for p in (directory / restoring.trial.trial_dir).glob("checkpoint_*")]
    assert kept == ["checkpoint_000005"]


def test_a_checkpoint_that_is_gone_is_replaced_by_the_one_the_plan_chose(hosts, copied):
    directory = copied("errored")
    gone = next(directory.glob("*role=fails*/checkpoint_000002"))
    shutil.rmtree(gone)
    restoring = Restoring(directory, "errored", hosts=hosts)
    assert restoring.trial.checkpoint == "checkpoint_000001"
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert [row["started_from"] for row in restoring.results()][-4:] == [2, 2, 2, 2]
    assert restoring.iterations()[-4:] == [3, 4, 5, 6]


def test_callbacks_and_stopper_of_tuner_pkl_work_and_keep_their_state(hosts, copied, tmp_path):
    record = tmp_path / "seen"
    restoring = Restoring(
        copied("extras"), "extras", hosts=hosts, env={"TUNE_TEST_RECORD": str(record)}
    )
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == [1, 2, 3, 4, 5]  # the stopper's five, not six
    assert record.read_text() == "5"  # three before the failure, from callback-states-*.pkl


def test_rays_own_retry_loses_no_row_that_was_not_uploaded_yet(hosts, copied, tmp_path):
    """Ray's loggers fetch result.json again when a trial is retried, over what is not stored yet."""
    directory = copied("retries")
    save_rarely(directory)
    env = {"TUNE_TEST_FAILS_ONCE": str(tmp_path / "failed")}
    restoring = Restoring(directory, "retries", hosts=hosts, fresh_budget=True, env=env)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert (tmp_path / "failed").exists()
    assert restoring.iterations() == restoring.csv_iterations() == EVERY
    _, run = restoring.snapshot()
    assert run["num_failures"] == 1


def test_a_snapshot_carries_nothing_but_rays_own_row(hosts, copied):
    """The document has Ray's three parts, and the fields of its row that Ray's own file has."""
    directory = copied("with_resources")
    source = json.loads(next(directory.glob("experiment_state-*.json")).read_text())
    restoring = Restoring(directory, "with_resources", hosts=hosts)
    assert restoring.run().code == EXIT_FINISHED
    key = layout.snapshot_key(RESTORE_ID, restoring.trial.trial_id, 1)
    document = json.loads(restoring.store.get(key))
    assert document.keys() == source.keys()
    assert document["runner_data"].keys() == source["runner_data"].keys()
    for ours, theirs in zip(document["trial_data"][0], source["trial_data"][0], strict=True):
        assert json.loads(ours).keys() == json.loads(theirs).keys()


def test_an_empty_tuner_pkl_is_as_good_as_none(hosts, copied):
    directory = copied("errored")
    (directory / "tuner.pkl").write_bytes(b"")
    restoring = Restoring(directory, "errored", hosts=hosts)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == EVERY
    assert (directory / "tuner.pkl").read_bytes() == b""


def test_rows_past_the_checkpoint_are_repeated_as_by_ray(hosts, copied):
    restoring = Restoring(copied("sparse"), "sparse", hosts=hosts)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == restoring.csv_iterations() == [1, 2, 3, 3, 4, 5, 6]
