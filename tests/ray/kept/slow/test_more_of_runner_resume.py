"""More of ../test_runner_resume.py: kinds of trainables, budgets, what is kept."""

import pytest

from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.request import EXIT_FAILED, EXIT_FINISHED
from tests.support.ray.real_restore import Restoring

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
    import shutil

    directory = copied("errored")
    gone = next(directory.glob("*role=fails*/checkpoint_000002"))
    shutil.rmtree(gone)
    restoring = Restoring(directory, "errored", hosts=hosts)
    assert restoring.trial.checkpoint == "checkpoint_000001"
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert [row["started_from"] for row in restoring.results()][-4:] == [2, 2, 2, 2]
    assert restoring.iterations()[-4:] == [3, 4, 5, 6]
