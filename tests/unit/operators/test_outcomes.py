"""Every experiment ends up in the summary; what becomes of one does not depend on its neighbours."""

import json
import re
from dataclasses import replace

import pytest

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.xcom_size import MAX_XCOM_BYTES, unpack
from airflow_tune_restore.operators import build_restore_plan, prepare_restores
from airflow_tune_restore.operators.check_restores import CheckRestoresOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.operators.experiment_table import MAX_EXPERIMENTS
from airflow_tune_restore.operators.xcom import Outcome
from airflow_tune_restore.protocol.check import CheckAnswer, MatchedBy, Problem
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowException, AirflowFailException
from tests.support.airflow.context import make_context
from tests.support.airflow.states import FAILED, RETRIED, SKIPPED, SUCCESS, plan, run
from tests.support.checks import answer_all
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import leave_attempt, start_night

ANOTHER = "It was made with another trainable."
OUTCOMES = {
    "good": "restored",
    "misfit": "misfit",
    "leased": "left_alone",
    "finished": "left_alone",
    "broken": "refused",
    "undrawn": "continue_search",
}
"""What becomes of each experiment that `make` makes, by name."""


def make(directory, name):
    """Make an experiment to which that happens."""
    ended = name in ("finished", "undrawn")
    samples = 3 if name == "undrawn" else None
    rows = [make_row("t", status="TERMINATED" if ended else "ERROR")]
    experiment = make_experiment(directory / name, rows, total_samples=samples)
    if name == "broken":
        next(experiment.glob("experiment_state-*")).write_text("{")
    if name == "leased":
        start_night(open_store(str(experiment)), "another")
    return experiment


@pytest.fixture
def misfits(launcher):
    """The trainable fits no experiment of the name `misfit`."""

    misfit = CheckAnswer(experiment="", problem=Problem.MISFIT, message=ANOTHER)

    def check(request, _timeout):
        return [
            misfit if answer.experiment.endswith("/misfit") else answer
            for answer in answer_all(request)
        ]

    launcher.check = check


def finish_trials(outcomes):
    """Let the trial of each restore that was started finish."""
    for each in outcomes:
        if each["outcome"] == "restored":
            store = open_store(each["experiment"])
            leave_attempt(store, read_plan(store, each["restore_id"]), "t")


def a_night(experiments, **left_alone):
    """Return the states of plan, commit and done, and what the commit pushed, by experiment's name."""
    planned, _, pushed = run(plan(experiments))
    outcomes = pushed["outcomes"]
    assert json.loads(json.dumps(outcomes, allow_nan=False)) == outcomes
    finish_trials(outcomes)
    commit = CommitRestoreOperator(task_id="commit", outcomes=outcomes, **left_alone)
    committed, _, summary = run(commit)
    done, _, _ = run(CheckRestoresOperator(task_id="done", outcomes=outcomes))
    lines = {line["experiment"].rpartition("/")[2]: line for line in summary["experiments"]}
    return (planned, committed, done), lines


@pytest.mark.usefixtures("misfits")
@pytest.mark.parametrize(
    ("neighbours", "states"),
    [
        ("", (SUCCESS, SUCCESS, SUCCESS)),
        ("good", (SUCCESS, SUCCESS, SUCCESS)),
        ("leased", (SUCCESS, SUCCESS, SUCCESS)),
        ("finished", (SUCCESS, SUCCESS, SUCCESS)),
        ("undrawn", (SUCCESS, SUCCESS, SUCCESS)),
        ("good leased finished undrawn", (SUCCESS, SUCCESS, SUCCESS)),
        ("broken", (SUCCESS, SUCCESS, FAILED)),
        ("good broken", (SUCCESS, SUCCESS, FAILED)),
    ],
)
def test_a_misfit_has_the_same_states_whatever_its_neighbours_do(tmp_path, neighbours, states):
    names = ["misfit", *neighbours.split()]
    found, lines = a_night([make(tmp_path, name) for name in names])
    assert found == states
    assert {name: line["outcome"] for name, line in lines.items()} == {
        name: OUTCOMES[name] for name in names
    }
    assert lines["misfit"]["reason"] == ANOTHER


@pytest.mark.parametrize(
    ("names", "states"),
    [
        ("good", (SUCCESS, SUCCESS, SUCCESS)),
        ("leased", (SKIPPED, SUCCESS, SUCCESS)),
        ("finished leased", (SKIPPED, SUCCESS, SUCCESS)),
        ("undrawn", (SUCCESS, SUCCESS, SUCCESS)),
        ("broken", (SUCCESS, SUCCESS, FAILED)),
        ("broken leased", (SUCCESS, SUCCESS, FAILED)),
    ],
)
@pytest.mark.usefixtures("misfits")
def test_every_experiment_is_in_the_summary(tmp_path, names, states):
    found, lines = a_night([make(tmp_path, name) for name in names.split()])
    assert found == states
    assert {name: line["outcome"] for name, line in lines.items()} == {
        name: OUTCOMES[name] for name in names.split()
    }
    assert all(line["reason"] for line in lines.values())


def test_the_log_of_the_commit_ends_with_what_became_of_each(tmp_path, misfits, capfd):
    """Those that a person must look at are the first."""
    experiments = [make(tmp_path, name) for name in OUTCOMES]
    _, _, pushed = run(plan(experiments))
    finish_trials(pushed["outcomes"])
    alone = {"experiments": [{"experiment": "/x/alive", "health": "running", "reason": "r"}]}
    capfd.readouterr()
    commit = CommitRestoreOperator(
        task_id="commit", outcomes=pushed["outcomes"], left_alone=[{**alone, "not_listed": 7}]
    )
    run(commit)
    log = capfd.readouterr().out
    _, headline, table = log.partition(
        "14 experiments: 1 refused, 1 misfit, 1 restored, 1 search goes on, 10 left alone"
    )
    assert headline
    words = "refused misfit restored search left left left".split()
    first = [row.split() for row in re.findall(r"\[info +\] (.*)", table)]
    shown = [row[1] for row in first if len(row) > 1 and row[1] in words]
    assert shown == words
    assert "1 of 1 finished" in table
    assert "… and 7 more: 7 left alone." in table.splitlines()[-1]


def test_without_a_plan_those_that_find_left_alone_are_in_the_summary():
    alive = {"experiment": "/x/alive", "health": "running", "reason": "leased"}
    left_alone = [{"experiments": [alive], "not_listed": 0}]
    commit = CommitRestoreOperator(task_id="commit", outcomes=[], left_alone=left_alone)
    state, result, summary = run(commit)
    assert (state, result) == (SUCCESS, [])
    (line,) = summary["experiments"]
    assert (line["outcome"], line["reason"]) == ("left_alone", "running: leased")
    nothing = [{"experiments": [], "not_listed": 0}]
    assert run(CommitRestoreOperator(task_id="c", outcomes=[], left_alone=nothing))[0] == SKIPPED


def test_very_many_refused_experiments_make_no_endless_message():
    places = [Address(f"/data/team/sweep_{number:05}") for number in range(2000)]
    batch = ExperimentBatch(places)
    batch.take(str(places[-1]), "r")
    for place in places[:-1]:
        batch.refuse(str(place), StorageError(f"{place} cannot be read: {'x' * 3000}, clear it."))
    outcomes = batch.to_xcom()
    assert len(json.dumps(outcomes)) < MAX_XCOM_BYTES
    first, *refused = unpack(outcomes)
    assert (first["restore_id"], len(refused)) == ("r", 1999)
    assert refused[0]["reason"].endswith("x, clear it.")
    done = CheckRestoresOperator(task_id="done", outcomes=outcomes)
    with pytest.raises(AirflowFailException, match="and 1979 more, which the log has") as failed:
        done.execute(make_context())
    batch.leave_alone(str(places[-1]), "r")
    with pytest.raises(AirflowException, match="and 1980 more, which the log has") as retried:
        batch.stop_without_work(has_tries=True)
    assert max(len(str(error.value)) for error in (failed, retried)) < 10_000


def test_a_commit_that_failed_is_in_the_summary(tmp_path):
    good = make(tmp_path, "good")
    _, _, pushed = run(plan([good], trainable=None))
    make_experiment(good, [make_row("t", status="RUNNING")])  # its driver runs again
    state, _, summary = run(CommitRestoreOperator(task_id="commit", outcomes=pushed["outcomes"]))
    (line,) = summary["experiments"]
    assert (state, line["outcome"]) == (RETRIED, "commit_failed")
    assert "changed since it was planned" in line["reason"]


def test_trials_that_failed_again_are_the_outcome_of_their_experiment(tmp_path):
    good = make(tmp_path, "good")
    _, _, pushed = run(plan([good], trainable=None))  # no runner records that a trial has finished
    _, _, summary = run(CommitRestoreOperator(task_id="commit", outcomes=pushed["outcomes"]))
    (line,) = summary["experiments"]
    assert (line["outcome"], line["trials_finished"]) == ("trials_failed", 0)


def test_an_experiment_that_find_could_not_read_stands_before_those_that_are_well():
    outcomes = [{"experiment": "/a", "outcome": "left_alone", "reason": "running"}]
    broken = {"experiment": "/b", "health": "unreadable", "reason": "its state is cut off"}
    left_alone = [{"experiments": [broken], "not_listed": 0}]
    commit = CommitRestoreOperator(task_id="c", outcomes=outcomes, left_alone=left_alone)
    lines = run(commit)[2]["experiments"]
    assert [line["outcome"] for line in lines] == ["unreadable", "left_alone"]
    assert lines[0]["reason"] == "unreadable: its state is cut off"


def test_very_many_experiments_fit_into_an_xcom():
    outcomes = [
        {"experiment": f"/x/{number}", "outcome": "left_alone"} for number in range(MAX_EXPERIMENTS)
    ]
    outcomes.append({"experiment": "/z", "outcome": "refused", "reason": "why"})
    _, _, summary = run(CommitRestoreOperator(task_id="commit", outcomes=outcomes))
    assert len(summary["experiments"]) == MAX_EXPERIMENTS
    assert summary["experiments"][0]["experiment"] == "/z"


def test_of_two_runs_the_loser_is_skipped_and_its_summary_names_the_winner(tmp_path):
    good = make(tmp_path, "good")
    run(plan([good], trainable=None), make_context(run_id="first"))
    state, _, pushed = run(plan([good], trainable=None), make_context(run_id="second"))
    assert state == SKIPPED
    (outcome,) = pushed["outcomes"]
    assert outcome["reason"] == "another restore, DAG nightly, run first, is restoring it"


def test_a_loser_that_had_prepared_its_restore_is_skipped_too(tmp_path, monkeypatch):
    good = make(tmp_path, "good")
    original = build_restore_plan.start_restore

    def late(*arguments, **named):
        monkeypatch.setattr(build_restore_plan, "start_restore", original)
        run(plan([good], trainable=None), make_context(run_id="faster"))
        return original(*arguments, **named)

    monkeypatch.setattr(build_restore_plan, "start_restore", late)
    state, _, pushed = run(plan([good], trainable=None))
    (outcome,) = pushed["outcomes"]
    assert (state, outcome["outcome"]) == (SKIPPED, "left_alone")


@pytest.mark.parametrize(
    ("neighbours", "tries", "planned", "done"),
    [
        ("", 1, RETRIED, FAILED),
        ("", 2, SUCCESS, FAILED),
        ("leased", 1, RETRIED, FAILED),
        ("good", 1, SUCCESS, FAILED),
    ],
)
def test_a_store_that_does_not_answer_is_asked_again_if_nothing_else_was_started(
    tmp_path, monkeypatch, neighbours, tries, planned, done
):
    experiments = [make(tmp_path, name) for name in ["silent", *neighbours.split()]]
    original = prepare_restores.prepare_restore

    def prepare(store, *rest):
        if store.uri.endswith("/silent"):
            raise StorageError("The store does not answer.")
        return original(store, *rest)

    monkeypatch.setattr(prepare_restores, "prepare_restore", prepare)
    state, _, pushed = run(plan(experiments, trainable=None), make_context(try_number=tries))
    assert state == planned
    assert pushed["outcomes"][0]["outcome"] == "refused"
    check = CheckRestoresOperator(task_id="done", outcomes=pushed["outcomes"])
    assert run(check)[0] == done


def test_a_trainable_that_cannot_be_used_fails_the_plan_at_once(tmp_path, launcher):
    launcher.refusal = InvalidInputError("The module no_such does not exist.")
    experiments = [make(tmp_path, name) for name in ("good", "leased")]
    state, _, pushed = run(plan(experiments))
    assert state == FAILED
    assert [item["outcome"] for item in pushed["outcomes"]] == ["refused", "left_alone"]


def test_one_that_fails_every_trial_is_refused_in_words(tmp_path):
    done = CheckRestoresOperator(
        task_id="done",
        outcomes=[
            {"experiment": "/x/a", "outcome": "refused", "reason": "Give it a param_space."},
            {"experiment": "/x/b", "outcome": "misfit", "reason": "no"},
        ],
    )
    with pytest.raises(AirflowFailException, match=r"1 experiment\..* /x/a: Give it a param_space"):
        done.execute(make_context())


def test_experiments_of_different_directories_are_named_if_only_the_name_fits(tmp_path, capfd):
    ours, theirs = make(tmp_path / "ours", "good"), make(tmp_path / "theirs", "undrawn")
    _, _, pushed = run(plan([ours, theirs], trainable=None))
    assert [item["by_name"] for item in pushed["outcomes"]] == [True, True]
    log = capfd.readouterr().out
    assert log.count("Taken by the name of the trainable alone") == 1
    assert f"several directories: {ours}, {theirs}." in log
    assert "docs/trainable.md" in log
    _, _, summary = run(CommitRestoreOperator(task_id="commit", outcomes=pushed["outcomes"]))
    assert [line["by_name"] for line in summary["experiments"]] == [True, True]
    assert capfd.readouterr().out.count("taken by the name of its trainable") == 2


def test_those_with_evidence_of_their_module_are_not_named(tmp_path, launcher):
    launcher.check = lambda request, _timeout: [
        replace(answer, matched_by=matched_by)
        for answer, matched_by in zip(answer_all(request), MatchedBy, strict=True)
    ]
    experiments = [make(tmp_path / team, "good") for team in ("a", "b")]
    _, _, pushed = run(plan(experiments))
    by_name = [item["by_name"] for item in pushed["outcomes"]]
    assert by_name == [matched_by is MatchedBy.NAME for matched_by in MatchedBy]


def test_experiments_of_one_directory_are_not(tmp_path, capfd):
    experiments = [make(tmp_path, name) for name in ("good", "undrawn")]
    _, _, pushed = run(plan(experiments, trainable=None))
    assert [item["by_name"] for item in pushed["outcomes"]] == [False, False]
    assert "by the name of the trainable" not in capfd.readouterr().out


def test_one_alone_is_named_if_its_prefix_has_other_directories(tmp_path):
    """On this night only the experiment of the other team has failed."""
    make(tmp_path / "ours", "finished")
    make(tmp_path / "theirs", "good")
    found = FailedTuneExperimentSensor(task_id="find", prefix=str(tmp_path)).execute(make_context())
    operator = plan([], trainable=None)
    operator.experiments = found
    _, _, pushed = run(operator)
    assert [item["by_name"] for item in pushed["outcomes"]] == [True]


def test_the_words_of_an_outcome_are_a_wire_format():
    assert sorted(Outcome) == [
        *("continue_search", "left_alone", "misfit", "not_started", "refused", "restored"),
        *("unknown", "waiting"),
    ]
