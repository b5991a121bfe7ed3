"""Tables of very many rows: the first hundred, the number of the others, and `--all`."""

import json
from dataclasses import replace

import msgspec
import pytest

from airflow_tune_restore.cli import output
from airflow_tune_restore.experiments.health import ExperimentReport, Health
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore import columns
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.prepare import plan_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.shown_rows import MAX_ROWS, describe_hidden, first_rows
from airflow_tune_restore.restore.summary import summarise
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import plan_night


@pytest.fixture
def sweep(tmp_path):
    """A hundred and twenty trials have finished, then sixty failed, and one never ended."""
    rows = [make_row(f"done{n:03}", last_result_time=9.0) for n in range(120)]
    rows += [make_row(f"bad{n:03}", status="ERROR", last_result_time=3.0) for n in range(60)]
    rows += [make_row("open", status="RUNNING", last_result_time=1.0)]
    return make_experiment(tmp_path / "sweep", rows)


@pytest.fixture
def counted_cells(monkeypatch):
    """How many cells of tables are made."""
    made = []
    original = columns._as_text

    def as_text(cell):
        made.append(cell)
        return original(cell)

    monkeypatch.setattr(columns, "_as_text", as_text)
    return made


def rows_of(out, *names):
    words = [line.split()[:1] for line in out.splitlines()]
    return [word[0] for word in words if word and word[0].startswith(names)]


PLAN = ("--resume-errored", "--stale-after", "0")


def test_a_long_plan_shows_trials_that_run_first_and_counts_the_others(
    tune_restore, sweep, counted_cells
):
    _, out, _ = tune_restore("plan", sweep, *PLAN)
    shown = rows_of(out, "done", "bad", "open")
    assert len(shown) == MAX_ROWS
    assert [name[:3] for name in shown] == ["bad"] * 60 + ["ope"] + ["don"] * 39
    line = "… and 81 more: 81 that stay as they are. --all lists them, --json has them."
    assert line in out.splitlines()
    assert "61 of 181 trials to run" in out
    assert len(counted_cells) <= 10 * MAX_ROWS


def test_all_lists_every_row_of_a_plan_in_its_order(tune_restore, sweep):
    _, out, _ = tune_restore("plan", sweep, *PLAN, "--all")
    shown = rows_of(out, "done", "bad", "open")
    assert len(shown) == 181
    assert shown[0].startswith("done")
    assert "--all" not in out
    _, out, _ = tune_restore("plan", sweep, *PLAN, "--json")
    assert [trial["trial_id"] for trial in json.loads(out)["trials"]] == shown


def test_a_plan_that_fits_is_as_it_was(tune_restore, tmp_path):
    rows = [make_row(f"done{n:03}") for n in range(MAX_ROWS - 1)]
    rows.append(make_row("bad", status="ERROR"))
    sweep = make_experiment(tmp_path / "sweep", rows)
    _, out, _ = tune_restore("plan", sweep, *PLAN)
    assert out == tune_restore("plan", sweep, *PLAN, "--all")[1]
    assert len(rows_of(out, "done", "bad")) == MAX_ROWS
    assert "more:" not in out


def test_hidden_trials_are_counted_by_what_becomes_of_them(capsys, tmp_path):
    rows = [make_row(f"bad{n:03}", status="ERROR", last_result_time=1.0 + n) for n in range(110)]
    rows += [make_row(f"wait{n}", status="PENDING") for n in range(3)]
    rows += [make_row(f"done{n}") for n in range(2000)]
    store = open_store(str(make_experiment(tmp_path / "sweep", rows)))
    plan = plan_night(store)
    output.print_plan(plan, as_json=False)
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("… and")]
    assert last == [
        "… and 2,013 more: 13 to run, 2,000 that stay as they are. --all lists them, --json has them."
    ]


def test_trials_in_quarantine_and_those_that_end_are_not_hidden(capsys, tmp_path):
    rows = [make_row(f"done{n:03}", last_result_time=9.0) for n in range(120)]
    rows += [make_row("held", status="ERROR"), make_row("ends", status="RUNNING")]
    plan = plan_night(open_store(str(make_experiment(tmp_path / "sweep", rows))))
    changed = {
        "held": {"action": TrialAction.KEEP, "quarantined": True},
        "ends": {"action": TrialAction.TERMINATE},
    }
    trials = [msgspec.structs.replace(t, **changed.get(t.trial_id, {})) for t in plan.trials]
    output.print_plan(replace(plan, trials=tuple(trials)), as_json=False)
    shown = rows_of(capsys.readouterr().out, "done", "held", "ends")
    assert set(shown[:2]) == {"held", "ends"}
    assert len(shown) == MAX_ROWS


def test_parameters_are_those_of_the_rows_that_are_shown(tune_restore, tmp_path):
    rows = [make_row(f"done{n:03}", config={"lr": "x" * 20}) for n in range(120)]
    rows += [make_row(f"bad{n:03}", status="ERROR", config={"lr": n}) for n in range(100)]
    _, out, _ = tune_restore("plan", make_experiment(tmp_path / "sweep", rows), *PLAN)
    assert "xxx" not in out
    assert out.splitlines()[0].split()[:3] == ["trial", "lr", "status"]


def summary_of(sweep, **fields):
    prepared = plan_restore(
        open_store(str(sweep)),
        "r1",
        PrepareOptions(choices=PlanChoices(**fields)),
    )
    state = read_experiment(prepared.store).state
    return summarise(
        prepared.plan, state_file=None, before=state, after=state, outcomes={}, samples_left=0
    )


def test_a_long_table_before_and_after_shows_failures_first(sweep, capsys, counted_cells):
    summary = summary_of(sweep)
    output.print_summary(summary, experiment=str(sweep), as_json=False)
    out = capsys.readouterr().out
    shown = rows_of(out, "done", "bad", "open")[:MAX_ROWS]
    assert shown[0] == "open"  # it was to run, and has not ended
    assert "… and 81 more: 81 not run. --all lists them, --json has them." in out.splitlines()
    assert len(counted_cells) <= 10 * MAX_ROWS
    output.print_summary(summary, experiment=str(sweep), as_json=False, list_all=True)
    out = capsys.readouterr().out
    assert len(rows_of(out, "done", "bad", "open")) == 181
    assert "more:" not in out


def test_the_counts_of_a_summary_are_of_all_trials(sweep):
    from airflow_tune_restore.restore.flags import ResumeFlags

    summary = summary_of(sweep, flags=ResumeFlags.from_flags(resume_errored=True))
    assert (len(summary.ran), len(summary.failed)) == (61, 61)
    assert "61 did not (bad000, " in summary.headline()
    *first, last = summary.describe_failures()
    assert len(first) == 10
    assert last == "51 more trials did not finish: the table has the errors."


def report(number, health):
    return ExperimentReport(
        experiment=f"s3://b/{health.value}{number:03}",
        health=health,
        reason="why",
        trials={"ERROR": 1},
        state_file=None,
        last_write=None,
        samples_left=None,
    )


def scanned(*counts):
    """Return what a scan found: so many of each health, in this order."""
    return [(report(n, health), []) for health, count in counts for n in range(count)]


def printed(capsys, reports, **options):
    output.print_reports(reports, prefix="s3://b", as_json=False, **options)
    return capsys.readouterr().out


def test_a_long_scan_hides_no_failed_experiment_behind_finished_ones(capsys, counted_cells):
    reports = scanned(
        (Health.FINISHED, 120), (Health.RUNNING, 50), (Health.ERRORED, 40),
        (Health.UNREADABLE, 3), (Health.INTERRUPTED, 7), (Health.NOT_STARTED, 1),
    )  # fmt: skip
    out = printed(capsys, reports)
    shown = [name.removeprefix("s3://b/").rstrip("0123456789") for name in rows_of(out, "s3://")]
    assert shown == (
        ["running"] * 49 + ["errored"] * 40 + ["unreadable"] * 3 + ["interrupted"] * 7
        + ["not_started"]
    )  # fmt: skip
    assert out.splitlines()[-1] == (
        "… and 121 more: 1 running, 120 finished. --all lists them, --json has them."
    )
    assert len(counted_cells) <= 10 * MAX_ROWS
    assert len(rows_of(printed(capsys, reports, list_all=True), "s3://")) == 221


def test_a_scan_that_fits_is_as_it_was(capsys):
    reports = scanned((Health.FINISHED, 60), (Health.ERRORED, 40))
    out = printed(capsys, reports)
    assert out == printed(capsys, reports, list_all=True)
    assert rows_of(out, "s3://") == [each.experiment for each, _ in reports]


def test_the_evidence_is_that_of_the_experiments_that_are_shown(capsys):
    out = printed(capsys, scanned((Health.ERRORED, 150)), explain=True)
    assert out.count(" is errored") == MAX_ROWS


@pytest.mark.parametrize("command", ["scan", "plan"])
def test_all_is_an_option_of_the_command(tune_restore, sweep, command):
    code, out, _ = tune_restore(command, sweep, "--all")
    assert code == 0
    assert out


def test_rows_keep_their_order_within_a_rank():
    rows = [3, 1, 2, 1, 3]
    assert first_rows(rows, lambda row: row, 5) == (rows, ())
    assert first_rows(rows, lambda row: -row, 3) == ([3, 3, 2], [1, 1])
    assert first_rows(rows, lambda row: row, None) == (rows, ())
    assert describe_hidden({}) == ""
    assert describe_hidden({"of these": 1000, "of those": 1}, "Hint.") == (
        "\n… and 1,001 more: 1,000 of these, 1 of those. Hint."
    )
