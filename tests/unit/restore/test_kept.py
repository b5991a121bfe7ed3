"""A plan names the option that would run the trials it does not run, as its user writes it."""

import json

import pytest

from airflow_tune_restore.exceptions import LeaseHeldError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.printable import share
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.kept import describe_kept, in_dag
from airflow_tune_restore.restore.planner import build_plan
from airflow_tune_restore.restore.prepare import plan_restore, prepare_restore, preview_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import PLACE, night

DONE = make_row("done", last_result={"training_iteration": 4, "done": True}, last_result_time=4.0)
BAD, WORSE = (make_row(name, status="ERROR", error=True) for name in ("bad", "worse"))
HUNG = make_row("hung", status="RUNNING")


def kept(tmp_path, *rows, name_option=in_dag, choices=None, **state):
    experiment = make_experiment(tmp_path / "exp", list(rows), **state)
    options = PrepareOptions(choices=choices or PlanChoices())
    return describe_kept(plan_restore(open_store(str(experiment)), "r1", options).plan, name_option)


def test_error_trials_name_both_flags(tmp_path):
    assert kept(tmp_path, DONE, BAD, WORSE) == [
        "2 ERROR trials stay as they are: resume_errored=True or restart_errored=True would run them"
    ]
    assert kept(tmp_path, DONE, BAD, name_option=lambda option: f"--{option}") == [
        "1 ERROR trial stays as it is: --resume_errored or --restart_errored would run it"
    ]


def test_trials_that_run_or_have_finished_name_none(tmp_path):
    resumed = PlanChoices(flags=ResumeFlags.from_flags(resume_errored=True))
    assert kept(tmp_path, DONE, BAD, HUNG, choices=resumed) == []
    assert kept(tmp_path, DONE) == []


def test_unfinished_trials_that_are_not_resumed_name_their_flag(tmp_path):
    skipped = PlanChoices(flags=ResumeFlags.from_flags(resume_unfinished=False))
    assert kept(tmp_path, DONE, HUNG, choices=skipped) == [
        "1 unfinished trial becomes TERMINATED: resume_unfinished=True would run it"
    ]


def test_trials_that_fail_fast_cut_short_name_their_flag(tmp_path):
    cut = make_row("cut", last_result={"training_iteration": 2, "done": False})
    state = {"_fail_fast": True, "_has_errored": True}
    found = kept(tmp_path, BAD, cut, total_samples=2, live=["cut"], **state)
    assert found[1:] == [
        "1 trial that fail_fast cut short stays as it is: resume_cut_short=True would run it"
    ]


def test_lost_checkpoints_name_the_flag_that_starts_over(tmp_path):
    lost = make_row("lost", status="ERROR", checkpoint=True)
    resumed = PlanChoices(flags=ResumeFlags.from_flags(resume_errored=True))
    assert kept(tmp_path, lost, choices=resumed) == [
        "1 trial whose checkpoints are gone stays as it is: allow_scratch=True would start it over"
    ]


def test_a_trial_that_no_flag_would_run_names_none(tmp_path):
    assert kept(tmp_path, DONE, make_row("bad", status="ERROR", trial_dir="../out")) == []


@pytest.mark.parametrize(
    ("name_option", "words"),
    [(in_dag, "resume_errored=True"), (lambda option: f"--{option}", "--resume_errored")],
)
def test_a_restore_with_nothing_to_do_names_the_flag(tmp_path, name_option, words):
    experiment = make_experiment(tmp_path / "exp", [DONE, BAD])
    options = PrepareOptions(name_option=name_option)
    text = prepare_restore(open_store(str(experiment)), "r1", options)
    assert f"; 1 ERROR trial stays as it is: {words} or" in text
    assert text.count("as it is") == 1


def test_the_shell_shows_flags_and_json_the_option_of_each_trial(tmp_path, monkeypatch, capsys):
    from airflow_tune_restore.cli import commands as cli

    experiment = make_experiment(tmp_path / "exp", [DONE, BAD])
    found = []
    for options in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["tune-restore", "plan", str(experiment), *options])
        with pytest.raises(SystemExit):
            cli.run()
        found.append(capsys.readouterr().out)
    assert "0 of 2 trials to run" in found[0]
    assert "--resume-errored or --restart-errored would run it" in found[0]
    trials = {trial["trial_id"]: trial["runs_with"] for trial in json.loads(found[1])["trials"]}
    assert trials == {"done": None, "bad": "resume_errored"}


def test_a_quarantined_trial_is_shown_whatever_the_flags_are(tmp_path):
    experiment = make_experiment(tmp_path / "exp", [DONE, BAD, WORSE])
    store = open_store(str(experiment))
    night(store, "n1", trial_id="bad")
    night(store, "n2", trial_id="bad")
    plan = plan_restore(store, "r1", PrepareOptions()).plan
    bad = plan.trial("bad")
    assert (bad.quarantined, bad.runs_with) == (True, None)
    assert f"`tune-restore release {experiment} bad`" in bad.reason
    assert any("1 quarantined (bad); `tune-restore release" in note for note in plan.warnings)
    assert describe_kept(plan, in_dag) == [
        "1 ERROR trial stays as it is: resume_errored=True or restart_errored=True would run it"
    ]


def test_an_unfinished_trial_in_quarantine_names_no_flag(tmp_path):
    experiment = make_experiment(tmp_path / "exp", [DONE, HUNG])
    read = read_experiment(open_store(str(experiment)))
    skipped = PlanChoices(flags=ResumeFlags.from_flags(resume_unfinished=False))
    plan = build_plan(read, skipped, restore_id="r1", checkpoints={}, quarantined={"hung": "why"})
    hung = plan.trial("hung")
    assert (hung.action, hung.quarantined, hung.runs_with) == ("terminate", False, None)


def test_refusals_are_errors_so_that_a_preview_can_put_those_at_work_first(tmp_path):
    experiment = make_experiment(tmp_path / "exp", [DONE, BAD])
    store = open_store(str(experiment))
    lease.acquire(store, restore_id="other", holder="somebody")
    _, (refusal,) = preview_restore(store, PrepareOptions())
    assert isinstance(refusal, LeaseHeldError)


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [(0, 1, "0 of 1 trial"), (1, 1, "1 trial"), (1, 3, "1 of 3 trials"), (3, 3, "all 3 trials"),
     (0, 0, "0 trials")],
)  # fmt: skip
def test_a_share_is_counted_in_words(part, whole, words):
    assert share(part, whole, "trial") == words


def test_each_trial_that_did_not_finish_has_a_sentence_with_place_and_iteration(tmp_path):
    experiment = make_experiment(tmp_path / "exp", [DONE, BAD])
    summary = night(open_store(str(experiment)), "n1")
    (sentence,) = summary.describe_failures()
    assert sentence.startswith("Trial bad did not finish: ")
    assert sentence.endswith(f", at {PLACE}, after iteration 3.")
