"""A commit of very many trials or experiments: its XComs fit, and its log can be read."""

import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.xcom_size import MAX_XCOM_BYTES
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search_steps import experiment_to_continue
from airflow_tune_restore.operators.experiment_table import ExperimentLine, ExperimentTable
from airflow_tune_restore.operators.plan_log import MAX_LINES, MAX_NAMED, log_plans
from airflow_tune_restore.operators.summary_log import MAX_TABLE_LINES, log_summaries
from airflow_tune_restore.operators.summary_xcom import MAX_IDS, describe_summaries
from airflow_tune_restore.operators.trial_outcome import judge
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol.printable import NOTE_LENGTH
from airflow_tune_restore.protocol.request import RunnerOutcome, TrialAction
from airflow_tune_restore.restore.shown_rows import MAX_ROWS
from airflow_tune_restore.restore.summary import CommitSummary, TrialChange
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.airflow.states import run
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import Attempt, make_outcome, plan_night, start_night


@pytest.fixture
def lines():
    """The lines that a task logs."""
    said: list[str] = []

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log = logging.Logger("task")
    log.addHandler(Sink())
    log.lines = said
    return log


def change(number: int, **fields: Any) -> TrialChange:
    usual: dict[str, Any] = {
        "action": TrialAction.RESUME,
        "status_before": TrialStatus.ERROR,
        "status_after": TrialStatus.TERMINATED,
        "iteration_before": 3,
        "iteration_after": 9,
        "metric_before": 0.5,
        "metric_after": float("nan"),
        "note": "ERROR, resumed from checkpoint_000003",
        "parameters": {"lr": str(number)},
    }
    trial_id = f"a1b2c_{number:05}"
    return TrialChange(**{"trial_id": trial_id, "final_trial_id": trial_id, **usual, **fields})


def failed(number: int) -> TrialChange:
    return change(number, status_after=TrialStatus.ERROR, note="ValueError: no")


def kept(number: int) -> TrialChange:
    return change(number, action=TrialAction.KEEP, note="stays")


def summary(*changes: TrialChange, number: int = 0, **fields: Any) -> CommitSummary:
    usual: dict[str, Any] = {
        "experiment": f"s3://team_a_aws@company-ml/experiments/sweep_{number:05}".ljust(200, "x"),
        "restore_id": f"airflow-{number:016x}",
        "state_file": "experiment_state-2026-11-28_06-05-45_r000001.json",
        "metric": "loss",
        "samples_left": 0,
        "is_whole_experiment": False,
        "changes": changes,
    }
    return CommitSummary(**{**usual, **fields})


def described(summaries: list[CommitSummary], log: Any, continued: Any = ()) -> list[Any]:
    items = describe_summaries(continued, summaries, log)
    assert len(json.dumps(items, allow_nan=False)) < xcom_size.MAX_XCOM_BYTES
    return items


def test_a_small_commit_has_all_details_and_says_nothing_of_room(lines):
    (item,) = described([summary(failed(0), change(1))], lines)
    assert [each["trial_id"] for each in item["trials"]] == ["a1b2c_00000", "a1b2c_00001"]
    assert item["trials"][0]["metric_after"] == "nan"
    assert item["failed"] == ["a1b2c_00000"]
    assert lines.lines == []


def test_with_very_many_trials_the_changes_are_left_out_and_the_log_says_so(lines):
    (item,) = described([summary(*map(failed, range(5000)))], lines)
    assert "trials" not in item
    assert len(item["failed"]) == 5000
    assert lines.lines == ["The XCom of this task has no room for the changes of trials."]


def test_with_very_many_failures_their_ids_are_counted(lines):
    summaries = [summary(*map(failed, range(5000)), number=each) for each in range(10)]
    items = described(summaries, lines)
    assert len(items) == 10
    assert (len(items[0]["failed"]), items[0]["failed_count"]) == (MAX_IDS, 5000)
    assert (items[0]["quarantined"], items[0]["quarantined_count"]) == ([], 0)
    assert items[0]["headline"].endswith("_r000001.json.")


def test_of_very_many_experiments_those_whose_search_is_continued_are_never_left_out(lines):
    summaries = [
        summary(change(0), number=each, samples_left=3 if each % 10 == 0 else 0)
        for each in range(5000)
    ]
    items = described(summaries, lines, continued=["s3://c@b/x/only-its-search"])
    continued = [item for item in items if item["samples_left"]]
    assert len(continued) == 501
    assert items[:501] == continued
    assert 501 < len(items) < 5001
    (line,) = lines.lines
    assert line.startswith(
        f"The XCom of this task has no room for details. It names {len(items)} of"
    )


def test_if_need_be_an_experiment_to_continue_is_its_address_alone(lines):
    """As many as the plan lets through: what is mapped over must be a list of whole values."""
    summaries = [summary(change(0), number=each, samples_left=3) for each in range(1250)]
    items = described([*summaries, summary(number=9999)], lines)
    assert items == [each.experiment for each in summaries]
    assert experiment_to_continue(items[0]) == summaries[0].experiment


def test_searches_that_are_not_continued_are_told_of(lines):
    summaries = [summary(change(0), number=each, samples_left=3) for each in range(2000)]
    items = described(summaries, lines)
    missing = 2000 - len(items)
    assert missing
    assert lines.lines[-1] == (
        f"The search of {missing} experiments is not continued now. Start another DAG run."
    )


def test_the_table_of_very_many_experiments_fits_into_an_xcom():
    found = [
        ExperimentLine(
            experiment=f"/x/{n:05}".ljust(200, "x"), outcome="restored", reason="r" * 3000
        )
        for n in range(5000)
    ]
    refused = ExperimentLine(experiment="/z", outcome="refused", reason="why")
    value = ExperimentTable.build([*found, refused], {}, {}).to_xcom()
    assert len(json.dumps(value)) < MAX_XCOM_BYTES
    assert value[0]["experiment"] == "/z"
    assert len(value) > 500
    assert len(value[1]["reason"]) == 80


def test_the_table_shows_the_first_rows_and_counts_the_others():
    found = [ExperimentLine(experiment=f"/x/{n}", outcome="restored") for n in range(1000)]
    refused = [ExperimentLine(experiment=f"/z/{n}", outcome="refused") for n in range(3)]
    table = ExperimentTable.build([*found, *refused], {"not_listed": 7}, {"left_alone": 5000})
    *_, last = shown = table.render().splitlines()
    assert sum(line.startswith((" /x/", " /z/")) for line in shown) == MAX_ROWS
    assert [line.split()[1] for line in shown[2:6]] == ["refused"] * 3 + ["restored"]
    assert last.startswith("… and 5,910 more: 903 restored, 5,007 left alone. ")
    assert table.headline() == "6010 experiments: 3 refused, 1000 restored, 5007 left alone"


@pytest.mark.parametrize("length", [10, 60, 67, 80, 81, 200])
def test_the_table_folds_long_words_and_loses_nothing_of_them(length):
    address = "/" + "A" * (length - 1)
    found = [
        ExperimentLine(experiment=address, outcome="unknown", reason=f"{'B' * 90} {'C' * 90}"),
        ExperimentLine(experiment="/z", outcome="restored", trials_run=1),
    ]
    shown = ExperimentTable.build(found, {}, {}).render()
    assert {letter: shown.count(letter) for letter in "ABC"} == {"A": length - 1, "B": 90, "C": 90}
    assert (address in shown) == (length <= 80)  # then it can be copied


def test_the_table_of_very_long_reasons_has_at_most_a_thousand_lines():
    found = [
        ExperimentLine(experiment=f"/x/{n}", outcome="refused", reason="why " * (NOTE_LENGTH // 4))
        for n in range(1000)
    ]
    assert len(ExperimentTable.build(found, {}, {}).render().splitlines()) <= MAX_TABLE_LINES


def test_the_log_has_every_headline_and_the_tables_of_those_that_failed_first(lines):
    good = [summary(*map(change, range(30)), number=each) for each in range(100)]
    bad = summary(*map(failed, range(500)), number=1000)
    log_summaries([*good, bad], lines)
    headlines = [line for line in lines.lines if line.startswith("s3://")]
    assert len(headlines) == 101
    assert lines.lines[0].startswith(bad.experiment)
    assert "… and 400 more: 400 failed." in lines.lines
    tables = [line for line in lines.lines[:-1] if line not in headlines]
    assert 900 < len(tables) <= MAX_TABLE_LINES + 1
    assert lines.lines[-1].startswith("This log shows 30 of 101 tables of trials, ")


def test_the_tables_of_a_few_experiments_are_all_in_the_log(lines):
    log_summaries([summary(change(0)), summary(change(1))], lines)
    assert sum(line.startswith(" a1b2c_") for line in lines.lines) == 2
    assert "tables of trials" not in lines.lines[-1]


def test_a_commit_logs_and_pushes_in_these_forms(tmp_path, monkeypatch, capfd):
    outcomes = []
    for number in range(12):
        rows = [make_row(f"t{trial}", status="ERROR") for trial in range(3)]
        experiment = make_experiment(tmp_path / f"sweep_{number:02}", rows)
        start_night(open_store(str(experiment)), "r1")
        outcomes.append({"experiment": str(experiment), "restore_id": "r1"})
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 1200)
    state, value, pushed = run(CommitRestoreOperator(task_id="commit", outcomes=outcomes))
    assert state == "success"
    for each in (value, pushed["experiments"]):
        assert 0 < len(json.dumps(each)) < 1200
    assert "The XCom of this task has no room for details." in capfd.readouterr().out


def test_the_log_of_a_plan_has_details_of_the_first_experiments(tmp_path, lines):
    rows = [make_row(f"t{trial}", status="ERROR") for trial in range(3)]
    made = plan_night(open_store(str(make_experiment(tmp_path / "exp", rows))))
    log_plans(lines, [(Address(f"/x/{number}"), made) for number in range(2000)])
    named = [line for line in lines.lines if line.startswith("/x/")]
    assert len(named) == 500
    assert sum(line.startswith("  resume t0") for line in lines.lines) == 50
    assert lines.lines[-1] == "… and 1500 restores more, with 4500 trials to run"


def test_the_log_of_a_plan_is_short_even_if_each_experiment_has_many_lines(tmp_path, lines):
    """Fifty lines of trials, and as many warnings, for each of the first experiments."""
    rows = [make_row(f"t{trial}", status="ERROR") for trial in range(60)]
    made = plan_night(open_store(str(make_experiment(tmp_path / "exp", rows))))
    made = replace(made, warnings=tuple(f"warning {number}" for number in range(60)))
    log_plans(lines, [(Address(f"/x/{number}"), made) for number in range(2000)])
    assert len([line for line in lines.lines if line.startswith("/x/")]) == MAX_NAMED
    assert MAX_LINES < len(lines.lines) < MAX_LINES + MAX_NAMED + 300


def test_the_widest_metrics_of_a_trial_fit_into_its_xcom():
    text = "\U0001f600" * 300  # twelve bytes each, as JSON
    wide = {f"{number:02}{text}": text for number in range(100)}
    store = MemoryStore()
    stored = make_outcome(Attempt("r1", "t0"), "finished", metrics=wide).to_json()
    outcome = RunnerOutcome.from_json(stored)
    item = TrialXCom(experiment="s3://c@b/x".ljust(2000, "x"), restore_id="r1", trial_id="t0")
    plan: Any = type("Plan", (), {"experiment": "s3://b/x"})
    value = judge(store, plan, item, outcome, log=logging.getLogger())
    assert value["metrics"]
    assert len(json.dumps(value)) < MAX_XCOM_BYTES
