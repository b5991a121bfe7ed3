"""The last line of a trial's task: what failed, where, and what happens next, never cut off."""

import logging
from dataclasses import replace
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import TrialFailedError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.trial_outcome import judge
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    RetryDecision,
    RetryPolicy,
)
from tests.support.airflow.context import make_context
from tests.support.airflow.names import RELEASE, before_3_3, since_3_3
from tests.support.records import PLACE, ending, leave_attempt, make_outcome

KEPT = "the commit keeps its progress up to iteration 4"


@pytest.fixture
def last_line(item, launcher, errored):
    """Run the task of a trial that ends in a way, and return its last line without the experiment."""

    def run(result=Result.FAILED, *, try_number=1, max_tries=1, said=(), task=None, **fields):
        if result is not None:
            launcher.on_start = ending(open_store(str(errored)), result, **fields)
        launcher.said = said
        operator = RestoreTrialOperator(
            **{"task_id": "trial", "trial": item, "trainable": "a:b", **(task or {})}
        )
        with pytest.raises(AirflowException) as error:
            operator.execute(make_context(try_number=try_number, max_tries=max_tries))
        return str(error.value).replace(str(errored), "EXP")

    return run


def test_a_failure_has_its_place_and_its_retry(last_line):
    assert last_line(iteration=4) == (
        f"Trial a3 of EXP failed again (trainable): ValueError: no, at {PLACE}, after iteration 4, in "
        "attempt 1; Airflow retries it in 5 min (try 2 of 2), as attempt 2."
    )


@since_3_3
def test_the_delay_is_that_of_the_policy_or_the_task(last_line):
    assert "; Airflow retries it in 30 s (try 2 of 2)" in last_line(cause="node_lost")
    task = {"retry_delay": timedelta(0)}
    assert "; Airflow retries it at once (try 2 of 2)" in last_line(task=task, iteration=5)


@before_3_3
def test_the_delay_is_that_of_the_task(last_line):
    assert "; Airflow retries it in 5 min (try 2 of 2)" in last_line(cause="node_lost")
    task = {"retry_delay": timedelta(0)}
    assert "; Airflow retries it at once (try 2 of 2)" in last_line(task=task, iteration=5)


def test_without_a_retry_the_line_has_what_is_kept(last_line):
    assert last_line(iteration=4, max_tries=0).endswith(
        f"; no retry is left: {KEPT}, and the next restore with resume_errored=True resumes it."
    )


def test_a_failure_that_repeats_has_the_command_that_releases_it(last_line):
    last_line(iteration=4)
    line = last_line(iteration=4, try_number=2, max_tries=3)
    assert (
        f"; it is not retried, because it failed at the same place and iteration before ({PLACE}, "
        in line
    )
    assert line.endswith(
        f"): {KEPT} and puts it in quarantine, until you run `tune-restore release EXP a3` "
        "(in Airflow: the DAG tune_restore_admin)."
    )


def test_the_command_has_the_connection_of_the_experiment(item, errored):
    store = open_store(str(errored))
    plan = replace(read_plan(store, item["restore_id"]), choices=PlanChoices(max_attempts=1))
    outcome = make_outcome(leave_attempt(store, plan, "a3", result="failed"), "failed")
    shown = TrialXCom.parse({**item, "experiment": "s3://team_a_aws@bucket/exp"})
    with pytest.raises(TrialFailedError) as failed:
        judge(store, plan, shown, outcome, log=logging.getLogger())
    assert "`tune-restore release s3://team_a_aws@bucket/exp a3`" in failed.value.kept


def test_a_message_names_the_address_in_place_of_the_uri():
    address = Address("s3://bucket/exp", "team_a_aws")
    shown = "`tune-restore release s3://team_a_aws@bucket/exp t`"
    assert address.named_in("`tune-restore release s3://bucket/exp t`") == shown
    assert address.named_in(shown) == shown


def test_a_policy_that_refuses_is_named(last_line):
    class Never(RetryPolicy):
        def evaluate(self, exception, try_number, max_tries, context=None):
            return RetryDecision.fail("it costs too much")

    line = last_line(iteration=4, task={"retry_policy": Never()})
    assert "; the retry policy refuses a retry (it costs too much): the commit keeps" in line


def test_a_long_message_loses_its_middle_and_never_the_end(last_line):
    line = last_line(iteration=4, error=f"begin {'x' * 100_000} end")
    assert len(line) < 4000
    assert line.startswith("Trial a3 of EXP failed again (trainable): ValueError: begin xxx")
    assert f"xxx end, at {PLACE}, after iteration 4, in attempt 1; Airflow retries" in line


def test_a_stopped_trial_and_a_runner_that_broke_off(last_line):
    assert last_line(Result.INTERRUPTED, iteration=3) == (
        "Trial a3 of EXP was stopped at iteration 3, in attempt 1; its snapshot is saved; Airflow "
        "retries it in 5 min (try 2 of 2), as attempt 2."
    )
    broke = last_line(Result.INTERRUPTED, iteration=3, error_type="OSError", error="disk full")
    assert "was stopped at iteration 3: OSError: disk full, in attempt 2" in broke


@pytest.mark.parametrize("result", [Result.REFUSED, Result.FENCED])
def test_what_is_refused_is_not_retried(last_line, result):
    assert last_line(result, error="x" * 1000 + ". Write this instead").endswith(
        "xxx. Write this instead; it is not retried, because a retry would end in the same way."
    )


def test_a_killed_runner_has_its_signal_and_its_last_lines(last_line, launcher, monkeypatch):
    start = launcher.start

    def killed(request):
        process = start(request)
        process.wait = lambda: -9
        return process

    monkeypatch.setattr(launcher, "start", killed)
    assert last_line(None, said=("one", "two")) == (
        "The runner of trial a3 of EXP exited without recording an outcome (killed), in attempt 1: "
        "SIGKILL ended it (exit code -9); its last lines: one | two; Airflow retries it in "
        f"{'5 min' if RELEASE < (3, 3) else '30 s'} (try 2 of 2), as attempt 2."
    )


def test_a_trial_of_a_whole_experiment_run_waits_for_the_next_restore(tmp_path, launcher):
    from tests.support.experiments.built import make_experiment, make_row

    experiment = make_experiment(tmp_path / "exp", [make_row("a1", status="ERROR")])
    plan = BuildRestorePlanOperator(
        task_id="plan",
        experiments=str(experiment),
        resume_errored=True,
        stale_after=0,
        strategy="whole_experiment",
    )
    (item,) = plan.execute(make_context())
    store = open_store(str(experiment))

    def end(request):
        from tests.support.records import Attempt, leave_outcome

        leave_outcome(store, Attempt(request.restore_id, "a1"), result="failed", iteration=4)

    launcher.on_start = end
    operator = RestoreTrialOperator(task_id="trial", trial=item, trainable="a:b")
    with pytest.raises(AirflowException) as error:
        operator.execute(make_context())
    # the retry policy fails the task, and where there are none, the error does
    assert isinstance(error.value, AirflowFailException) == (RELEASE < (3, 3))
    assert str(error.value).endswith(
        "; it is not retried, because the whole-experiment run has ended the trial: "
        f"{KEPT}, and the next restore with resume_errored=True resumes it."
    )
