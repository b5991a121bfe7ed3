"""Tables of trials and of experiments: parameters, colours, narrow terminals."""

import json

import pytest

from airflow_tune_restore.cli import output
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import ExperimentReport, Health
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.restore.prepare import plan_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.summary import summarise
from airflow_tune_restore.restore.trial_table import fitting_parameters
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row

DONE = make_row(
    "done",
    config={"lr": 0.1, "same": 1},
    last_result={"training_iteration": 4},
    last_result_time=4.0,
)
BAD = make_row("bad", config={"lr": 0.2, "same": 1}, status="ERROR", error=True)


@pytest.fixture
def experiment(tmp_path):
    return make_experiment(tmp_path / "exp", [DONE, BAD])


@pytest.fixture
def terminal(monkeypatch):
    """Let rich take the output for a terminal with colours, of this many columns."""

    def make(columns=200):
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    return make


def test_parameters_that_differ_stand_in_the_plan_and_in_its_json(tune_restore, experiment):
    _, out, _ = tune_restore("plan", experiment)
    heading, _, *lines = out.splitlines()
    assert heading.split()[:3] == ["trial", "lr", "status"]
    assert [line.split()[:3] for line in lines[:2]] == [
        ["done", "0.1", "TERMINATED"],
        ["bad", "0.2", "ERROR"],
    ]
    _, out, _ = tune_restore("plan", experiment, "--json")
    found = {trial["trial_id"]: trial["parameters"] for trial in json.loads(out)["trials"]}
    assert found == {"done": {"lr": "0.1"}, "bad": {"lr": "0.2"}}


def test_parameters_that_differ_stand_in_the_table_before_and_after_and_in_its_json(experiment):
    prepared = plan_restore(open_store(str(experiment)), "r1", PrepareOptions())
    state = read_experiment(prepared.store).state
    summary = summarise(
        prepared.plan, state_file=None, before=state, after=state, outcomes={}, samples_left=0
    )
    heading, _, *lines = summary.table().splitlines()
    assert heading.split()[:3] == ["trial", "lr", "before"]
    assert sorted(line.split()[1] for line in lines) == ["0.1", "0.2"]
    found = {change["trial_id"]: change["parameters"] for change in summary.describe_changes()}
    assert found == {"done": {"lr": "0.1"}, "bad": {"lr": "0.2"}}


def test_a_narrow_table_has_fewer_columns_and_a_note_on_the_others():
    rows = [{"lr": "0.1", "batch": "32", "optimizer/name": "adam"}, {"lr": "0.2"}]
    assert fitting_parameters(rows, 200) == (["lr", "batch", "optimizer/name"], "")
    shown, note = fitting_parameters(rows, 45)
    assert shown == ["lr", "batch"]
    assert note.startswith("The trials also differ in optimizer/name. ")
    _, note = fitting_parameters(rows, 45, more=2)
    assert note.startswith("The trials also differ in optimizer/name and 2 more. ")
    _, note = fitting_parameters(rows, 200, more=2)
    assert note.startswith("The trials also differ in 2 parameters. ")
    assert fitting_parameters([{}], 200) == ([], "")


def test_a_name_and_a_value_of_a_config_are_never_markup_and_never_obeyed(tune_restore, tmp_path):
    rows = [
        make_row(f"t{n}", config={"[red]a[/red]": f"[bold]\x1b[31m{n}::group::"}, status="ERROR")
        for n in range(2)
    ]
    _, out, _ = tune_restore("plan", make_experiment(tmp_path / "exp", rows))
    assert "[red]a[/red]" in out
    assert "[bold]1:group::" in out
    assert "\x1b" not in out


def test_words_have_colours_in_a_terminal(tune_restore, experiment, terminal):
    terminal()
    _, out, _ = tune_restore("scan", experiment.parent, "--stale-after", "0")
    assert "\x1b[31merrored\x1b[0m" in out
    assert "1 \x1b[31mERROR\x1b[0m 1 \x1b[32mTERMINATED\x1b[0m" in out
    _, out, _ = tune_restore("plan", experiment)
    assert "\x1b[31mERROR\x1b[0m" in out
    assert "ERROR, stays as it is" in out  # a reason holds text from the storage


def test_the_word_error_has_a_colour_in_a_terminal(capsys, terminal):
    terminal()
    output.print_error(InvalidInputError("[red]x[/red] is wrong"))
    assert capsys.readouterr().err == "\x1b[1;31merror:\x1b[0m [red]x[/red] is wrong\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_turned_off(
    tune_restore, experiment, terminal, monkeypatch, name, value, capsys
):
    terminal()
    monkeypatch.setenv(name, value)
    for command in (("scan", experiment.parent), ("plan", experiment), ("plan", "/nowhere")):
        _, out, err = tune_restore(*command)
        assert "\x1b" not in out + err


def test_json_and_a_pipe_have_no_colours(tune_restore, experiment, terminal):
    for command in (("scan", experiment.parent), ("plan", experiment)):
        assert "\x1b" not in tune_restore(*command)[1]
    terminal()
    for command in (("scan", experiment.parent, "--json"), ("plan", experiment, "--json")):
        assert "\x1b" not in tune_restore(*command)[1]


def test_in_a_narrow_terminal_paths_are_relative_to_the_prefix_that_is_named(
    tune_restore, tmp_path, terminal
):
    prefix = tmp_path / "a-prefix-with-a-long-name"
    make_experiment(prefix / "team" / "exp", [DONE, BAD])
    terminal(columns=80)
    _, out, _ = tune_restore("scan", prefix)
    assert out.splitlines()[0] == f"Experiments below {prefix}:"
    assert any(line.split()[:1] == ["team/exp"] for line in out.splitlines())
    _, out, _ = tune_restore("scan", prefix / "team" / "exp")
    assert any(line.split()[:1] == ["."] for line in out.splitlines())
    terminal(columns=300)
    _, out, _ = tune_restore("scan", prefix)
    assert str(prefix / "team" / "exp") in out
    assert "Experiments below" not in out


def test_a_status_of_a_forged_index_is_not_obeyed(capsys):
    report = ExperimentReport(
        experiment="s3://b/x",
        health=Health.ERRORED,
        reason="",
        trials={"\x1b[31m\ud800[red]\n": 1},
        state_file=None,
        last_write=None,
        samples_left=None,
    )
    output.print_reports([(report, [])], prefix="s3://b", as_json=False)
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split() == ["s3://b/x", "errored", "1", "[red]", "-"]


LONG = make_row(
    "676fe_00003",
    config={"lr": 0.1, "optimizer": "adam-with-weight-decay"},
    status="ERROR",
    error=True,
    checkpoint=True,
    last_result={"training_iteration": 4},
)


@pytest.fixture
def sweep(tmp_path):
    other = make_row("676fe_00001", config={"lr": 0.2, "optimizer": "sgd"}, status="RUNNING")
    return make_experiment(tmp_path / "team" / "a-sweep-with-a-long-name", [LONG, other])


@pytest.mark.parametrize("columns", [60, 70, 80, 100, 120, 160])
def test_a_narrow_plan_keeps_ids_and_statuses_whole_and_needs_few_lines(
    tune_restore, sweep, terminal, monkeypatch, columns
):
    terminal(columns)
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = tune_restore("plan", sweep, "--resume-errored", "--stale-after", "0")
    table = out[: out.index(" to run;")].splitlines()
    assert all(len(line) <= columns for line in table if "also differ" not in line)
    assert len(table) <= 12
    for word in ("676fe_00003", "676fe_00001", "ERROR", "RUNNING", "resume"):
        assert word in out.replace(",", " ").split()


def test_the_narrowest_plan_has_a_block_per_trial(tune_restore, sweep, terminal, monkeypatch):
    terminal(60)
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = tune_restore("plan", sweep, "--resume-errored")
    blocks = out.splitlines()
    start = blocks.index("676fe_00003")
    assert blocks[start + 1].startswith("  lr 0.1, status ERROR, action keep")
    assert blocks[start + 2].startswith("  ERROR, not resumed: ")


def test_a_narrow_table_before_and_after_keeps_ids_whole(sweep):
    prepared = plan_restore(open_store(str(sweep)), "r1", PrepareOptions())
    state = read_experiment(prepared.store).state
    summary = summarise(
        prepared.plan, state_file=None, before=state, after=state, outcomes={}, samples_left=0
    )
    for width in (30, 60, 80, 160):
        words = summary.table(width).replace(",", " ").split()
        assert {"676fe_00003", "676fe_00001", "ERROR", "RUNNING"} <= set(words)


@pytest.mark.parametrize("columns", [30, 70, 120])
def test_a_scan_never_cuts_an_address_in_two(tune_restore, sweep, terminal, monkeypatch, columns):
    terminal(columns)
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = tune_restore("scan", sweep.parents[1])
    assert any("team/a-sweep-with-a-long-name" in line for line in out.splitlines())
