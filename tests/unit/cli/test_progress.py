"""How a restore is going, for people: bars in a terminal, whole lines where there is none."""

from airflow_tune_restore.cli.progress import Progress
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.request import RunnerProgress, TrialAction
from airflow_tune_restore.restore.plan import TrialPlan

TRIAL = TrialPlan(
    trial_id="t1",
    status=TrialStatus.ERROR,
    trial_dir="t1",
    action=TrialAction.RESUME,
    checkpoint="checkpoint_000002",
    iteration=3,
    reason="",
    resources={},
)


def follow(*, quiet):
    with Progress(quiet=quiet) as progress:
        progress.say("a line of a log " * 20)
        progress.start(TRIAL)
        progress.advance("t1", RunnerProgress(trial_id="t1", iteration=4, metrics={"score": 8}))
        progress.end("t1", None)


def test_without_a_terminal_each_report_is_one_line(capsys):
    """A log that wraps at 80 columns cannot be searched, and bars that nobody sees tell nothing."""
    follow(quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.rstrip() for line in err.splitlines()] == [
        ("a line of a log " * 20).rstrip(),
        "t1 | starting from checkpoint_000002",
        "t1 | iteration 4, score=8",
        "t1 | exited without recording an outcome",
    ]


def test_quiet_is_silent(capsys):
    follow(quiet=True)
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    follow(quiet=False)
    assert "━" in capsys.readouterr().err
