"""An unexpected error in one experiment stops no other, and fails the DAG run at its end."""

from dataclasses import replace

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.experiments import examine, scan
from airflow_tune_restore.operators import build_restore_plan, commit_restore, prepare_restores
from airflow_tune_restore.operators.check_restores import CheckRestoresOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.check import Problem
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.version_compat import AirflowException, AirflowFailException
from tests.support.airflow.context import make_context
from tests.support.checks import answer_all
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import beat, leave_attempt, start_night

UNFORESEEN = [AttributeError("'list' has no 'items'"), MemoryError(), RecursionError("too deep")]


@pytest.fixture
def pair(tmp_path):
    """A good experiment beside one that brings trouble."""
    return [
        make_experiment(tmp_path / name, [make_row("t", status="ERROR")])
        for name in ("bad", "good")
    ]


def breaks(monkeypatch, module, function, error):
    """Let a function fail for the bad experiment alone."""
    original = getattr(module, function)

    def broken(first, *rest, **named):
        store = getattr(first, "store", first)
        if store.uri.endswith("/bad"):
            raise error
        return original(first, *rest, **named)

    monkeypatch.setattr(module, function, broken)


def plan(pair, context):
    return build_restore_plan.BuildRestorePlanOperator(
        task_id="plan", experiments=[str(e) for e in pair], resume_errored=True, stale_after=0
    ).execute(context)


def labels(items):
    return [item["label"] for item in items]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("module", "function"),
    [(prepare_restores, "prepare_restore"), (build_restore_plan, "start_restore")],
    ids=["prepare", "start"],
)
def test_the_plan_goes_on_with_the_others(pair, monkeypatch, module, function, error, caplog):
    breaks(monkeypatch, module, function, error)
    context = make_context()
    assert labels(plan(pair, context)) == ["good t"]
    pushed = context["ti"].pushed
    bad, good = pushed["outcomes"]
    assert (good["experiment"], good["outcome"]) == (str(pair[1]), "restored")
    assert (bad["outcome"], bad["restore_id"]) == ("refused", None)
    assert bad["reason"].startswith(f"unexpected error: {type(error).__name__}")
    assert caplog.records[-1].exc_info[1] is error  # the traceback is in the log
    with pytest.raises(
        AirflowFailException, match=r"Not restored, and a person is needed: 1 experiment\..*/bad: "
    ):
        CheckRestoresOperator(task_id="done", outcomes=pushed["outcomes"]).execute(context)


def plan_with_check(pair, context) -> list:
    return build_restore_plan.BuildRestorePlanOperator(
        task_id="plan",
        experiments=[str(e) for e in pair],
        resume_errored=True,
        stale_after=0,
        trainable="m:train",
    ).execute(context)


@pytest.mark.parametrize("problem", list(Problem))
def test_a_check_that_goes_wrong_costs_the_experiment_it_was_made_for(pair, launcher, problem):
    def check(request, _timeout):
        bad, good = answer_all(request)
        return [replace(bad, problem=problem, message="no"), good]

    launcher.check = check
    assert labels(plan_with_check(pair, make_context())) == ["good t"]


@pytest.mark.parametrize(
    ("error", "failure", "words"),
    [
        (RunnerError("It ended."), AirflowException, "Nothing could be restored.*It ended"),
        (InvalidInputError("m:train is a int."), AirflowFailException, "^m:train is a int"),
    ],
)
def test_a_check_that_cannot_be_made_at_all_fails_the_plan(pair, launcher, error, failure, words):
    launcher.refusal = error
    with pytest.raises(failure, match=words):
        plan_with_check(pair, make_context())


def test_an_unexpected_error_of_the_check_is_no_reason_to_try_again(pair, launcher):
    launcher.refusal = OSError("no memory")
    context = make_context()
    assert plan_with_check(pair, context) == []
    assert {item["outcome"] for item in context["ti"].pushed["outcomes"]} == {"refused"}


def test_a_run_without_errors_succeeds(pair):
    context = make_context()
    assert labels(plan(pair, context)) == ["bad t", "good t"]
    outcomes = context["ti"].pushed["outcomes"]
    CheckRestoresOperator(task_id="done", outcomes=outcomes).execute(context)


def test_beside_one_that_is_left_alone_the_plan_is_not_skipped(tmp_path, monkeypatch):
    """Skipped, the task would look as if there had been nothing to do."""
    pair = [
        make_experiment(tmp_path / "bad", [make_row("t", status="ERROR")]),
        make_experiment(tmp_path / "good", [make_row("t")]),
    ]
    breaks(monkeypatch, prepare_restores, "prepare_restore", KeyError("x"))
    assert plan(pair, make_context()) == []


def test_the_commit_goes_on_with_the_others_and_fails_at_its_end(pair, monkeypatch):
    context = make_context()
    plan(pair, context)
    restores = context["ti"].pushed["outcomes"]
    for item in restores:
        store = open_store(item["experiment"])
        leave_attempt(store, read_plan(store, item["restore_id"]), "t")
    breaks(monkeypatch, commit_restore, "commit_restore", MemoryError())
    operator = commit_restore.CommitRestoreOperator(task_id="commit", outcomes=restores)
    with pytest.raises(
        AirflowException, match=r"1 of 2 restores.*/bad: unexpected error: MemoryError"
    ) as caught:
        operator.execute(context)
    assert not isinstance(caught.value, AirflowFailException)  # a retry may find more memory
    assert [
        path.name.endswith("_r000001.json") for path in pair[1].glob("experiment_state*")
    ].count(True) == 1
    (output,) = context["ti"].pushed["return_value"]
    assert output["experiment"] == str(pair[1])


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_a_scan_finds_the_others(pair, tmp_path, monkeypatch, error):
    breaks(monkeypatch, examine, "read_outline", error)
    found = {report.name: report for report in scan.scan(LocalStore(tmp_path))}
    assert found["good"].health == "errored"
    assert found["bad"].health == "unreadable"
    assert type(error).__name__ in found["bad"].reason


def test_what_was_written_of_the_end_of_a_dead_runner_makes_no_difference(pair, monkeypatch):
    """As a restore that died leaves it: the next night commits it first."""
    store = open_store(str(pair[0]))
    request = leave_attempt(store, start_night(store, "dead"), "t", result="interrupted")
    store.delete(layout.outcome_key("dead", "t", request.attempt))
    beat(store, request)
    store.put(layout.exit_key("dead", "t", request.attempt), b"garbage")
    (pair[0] / layout.lease_claim_key(1)).write_text('{"restore_id": "dead", "ttl_seconds": 0}')
    monkeypatch.setattr("airflow_tune_restore.protocol.attempts.QUIET_SECONDS", 0.0)
    context = make_context()
    assert labels(plan(pair, context)) == ["bad t", "good t"]
    assert {item["outcome"] for item in context["ti"].pushed["outcomes"]} == {"restored"}
