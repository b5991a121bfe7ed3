"""Samples without their searcher: before anything starts, the user learns how to get them."""

import pickle
from dataclasses import replace
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments import tuner_file
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.prepare import prepare_continued_search, prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.storage.local import LocalStore
from tests.support import GOLDEN
from tests.support.experiments.built import (
    STATE_NAME,
    lose_searcher,
    make_experiment,
    make_row,
)
from tests.support.records import leave_attempt, plan_night, start_night

DONE = make_row("done", last_result={"training_iteration": 4, "done": True})
HUNG = make_row("hung", status="RUNNING")
WORDS = "3 samples cannot be drawn without their searcher, which is lost (tuner.pkl is missing)"


@pytest.fixture
def lost(tmp_path):
    """Make an experiment with samples left and neither tuner.pkl nor Ray's own searcher."""

    def make(rows, *, total_samples=None, **how):
        directory = make_experiment(tmp_path / "sweep", rows)
        total = len(rows) + 3 if total_samples is None else total_samples
        return LocalStore(lose_searcher(directory, total_samples=total, **how))

    return make


def options(**more):
    return PrepareOptions(stale_after=timedelta(0), **more)


def files(store):
    return sorted(entry.name for entry in store.list_dir())


@pytest.mark.parametrize("rows", [[DONE], [DONE, HUNG]])
@pytest.mark.parametrize("use_index", [True, False])
def test_a_scan_says_so_and_how_to_have_them_drawn(lost, tmp_path, rows, use_index):
    lost(rows)
    for _ in range(2):  # the second time from the index
        (report,) = scan(LocalStore(tmp_path), stale_after=timedelta(0), use_index=use_index)
        assert (report.health, report.samples_left) == ("interrupted", 3)
        assert WORDS in report.reason
        assert "search_alg in a DAG, --search-alg in the shell" in report.reason


@pytest.mark.parametrize("tuner", [b"", b"\x80\x04", b"no pickle"])
def test_a_damaged_tuner_pkl_is_as_good_as_none(lost, tmp_path, tuner):
    store = lost([DONE], tuner=tuner)
    assert "tuner.pkl cannot be read" in read_experiment(store).searcher_lost
    (report,) = scan(LocalStore(tmp_path), stale_after=timedelta(0), use_index=False)
    assert "which is lost (tuner.pkl cannot be read" in report.reason


def test_it_is_not_lost_where_it_can_be_had_or_is_not_needed(lost, tmp_path, monkeypatch):
    usable = {"_tune_config": None}
    assert read_experiment(lost([DONE], tuner=pickle.dumps(usable))).searcher_lost == ""
    assert read_experiment(lost([DONE], total_samples=1)).searcher_lost == ""
    own = make_experiment(tmp_path / "own", [DONE], total_samples=4)
    (own / layout.TUNER_FILE).unlink()
    assert read_experiment(LocalStore(own)).searcher_lost == ""
    # what is only too large for us may well be read by Ray
    large = lost([DONE], tuner=pickle.dumps("x" * 5000))
    monkeypatch.setattr(tuner_file, "MAX_BYTES", 4096)
    assert read_experiment(large).searcher_lost == ""


def test_with_nothing_else_to_do_it_is_refused_and_nothing_is_written(lost):
    store = lost([DONE])
    before = files(store)
    for prepare in (prepare_restore, prepare_continued_search):
        with pytest.raises(InvalidInputError, match=r"No run was started\.$") as refused:
            prepare(store, "r1", options())
        assert WORDS in str(refused.value)
    assert files(store) == before


def test_a_searcher_that_is_named_draws_them(lost):
    store = lost([DONE])
    for prepare in (prepare_restore, prepare_continued_search):
        made = prepare(store, "r1", options(can_search=True))
        assert made.plan.only_continues_search
        assert (made.plan.searcher_lost, made.searcher_lost) == (
            "", "tuner.pkl is missing",
        )  # fmt: skip


def test_the_plan_that_draws_them_keeps_the_choices_of_the_user(lost):
    store = lost([DONE])
    choices = PlanChoices(max_attempts=3, max_memory_bytes=1e9, remember_scheduler=True)
    for prepare in (prepare_restore, prepare_continued_search):
        made = prepare(store, "r1", options(can_search=True, choices=choices))
        assert replace(made.plan.choices, flags=choices.flags) == choices


@pytest.mark.parametrize("strategy", ["per_trial", "whole_experiment"])
def test_trials_are_restored_and_the_summary_says_why_the_samples_are_not(lost, strategy):
    store = lost([DONE, HUNG])
    plan = start_night(store, strategy=strategy)
    assert any(WORDS in warning for warning in plan.warnings)
    assert not plan.continues_search
    unit = layout.WHOLE_EXPERIMENT if plan.is_whole_experiment else "hung"
    leave_attempt(store, plan, unit, make_row("hung"))
    summary = commit_restore(store, "r1")
    assert (summary.failed, summary.samples_left, summary.is_done) == ((), 3, False)
    assert WORDS in summary.headline()
    assert "were never drawn" not in summary.headline()


def test_the_one_run_draws_them_with_a_named_searcher_and_only_it_is_told_the_name(lost):
    store = lost([DONE, HUNG])
    plan = start_night(store, strategy="whole_experiment", can_search=True)
    assert plan.continues_search
    named = RunnerSettings(trainable="m:train", search_alg="m:searcher")
    assert claim_attempt(store, plan, layout.WHOLE_EXPERIMENT, named).search_alg == "m:searcher"
    assert claim_attempt(store, plan, "hung", named).search_alg is None


def test_a_run_that_broke_off_is_not_done_and_the_summary_says_why(lost):
    store = lost([DONE])
    made = prepare_continued_search(store, "r1", options(can_search=True))
    plan = start_plan(made, holder="test")
    leave_attempt(
        store, plan, layout.WHOLE_EXPERIMENT, DONE, make_row("new"), result="interrupted",
        error_type="ValueError", error="no more suggestions.",
    )  # fmt: skip
    summary = commit_restore(store, "r1")
    assert [change.trial_id for change in summary.changes] == ["done", "new"]
    assert summary.headline().startswith(
        f"{store.uri}: 1 sample drawn now finished; the run broke off: ValueError: no more "
        "suggestions; 2 samples were never drawn; committed as "
    )
    assert (summary.samples_left, summary.is_done) == (2, False)


def test_a_summary_of_two_restores_holds_the_quarantined_trials_of_both(lost):
    made = prepare_continued_search(lost([DONE]), "r1", options(can_search=True))
    start_plan(made, holder="test")
    summary = commit_restore(made.store, "r1")
    assert ": no trial was to run; " in summary.headline()
    first, later = (replace(summary, quarantined=ids) for ids in (("a", "b"), ("b", "c")))
    assert first.then(later).quarantined == ("a", "b", "c")


@pytest.mark.parametrize("tuner", [None, (GOLDEN / "failed" / "optuna" / "tuner.pkl").read_bytes()])
def test_one_that_never_saved_its_state_is_lost_even_with_tuner_pkl(lost, tmp_path, tuner):
    """Ray starts such an experiment over; the message asks for no searcher, because none could go on."""
    store = lost([DONE, HUNG], tuner=tuner, saves=False)
    words = "3 samples cannot be drawn: their searcher never saved its state"
    (report,) = scan(LocalStore(tmp_path), stale_after=timedelta(0))
    assert words in report.reason
    plan = plan_night(store)
    assert not plan.continues_search
    assert [words in warning for warning in plan.warnings].count(True) == 1
    assert not [warning for warning in plan.warnings if "search_alg" in warning]
    with pytest.raises(
        InvalidInputError, match=r"never saved .* new experiment. No run was started"
    ):
        prepare_continued_search(store, "r1", options())


def test_a_trial_that_ran_when_the_run_broke_off_has_that_beside_it(lost):
    store = lost([HUNG])
    plan = start_night(store, strategy="whole_experiment", can_search=True)
    leave_attempt(
        store, plan, layout.WHOLE_EXPERIMENT, make_row("hung", status="RUNNING", iteration=2),
        result="interrupted", error_type="ConnectionError", error="the tracking server is away",
    )  # fmt: skip
    summary = commit_restore(store, "r1")
    assert [change.note for change in summary.changes] == ["the run broke off"]
    assert "the run broke off: ConnectionError: the tracking server is away" in summary.headline()


def test_a_searcher_that_was_ended_leaves_nothing(tmp_path):
    """A stopper, a time budget or the searcher itself may end it early: then all is done."""
    rows = [DONE, make_row("hung", status="RUNNING")]
    directory = make_experiment(tmp_path / "sweep", rows, total_samples=9)
    (old,) = directory.glob("basic-variant-state-*")
    old.rename(directory / STATE_NAME.replace("experiment_state", "basic-variant-state"))
    store = LocalStore(directory)
    plan = start_night(store, strategy="whole_experiment")
    request = leave_attempt(
        store, plan, layout.WHOLE_EXPERIMENT, DONE, make_row("hung"), result="finished"
    )
    state = {"_total_samples": 9, "_finished": True}
    directory = layout.searcher_dir(plan.restore_id, request.attempt)
    key = f"{directory}/{layout.numbered(1, 'basic-variant-state-kept.json')}"
    store.put(key, pickle.dumps(state))
    snapshot = layout.snapshot_key(plan.restore_id, layout.WHOLE_EXPERIMENT, request.attempt)
    store.put(snapshot, store.get(snapshot).replace(b'"stats": {', b'"stats": {"searcher": 1, '))
    summary = commit_restore(store, "r1")
    assert (summary.samples_left, summary.is_done) == (0, True)


def test_a_plan_for_whom_nothing_is_lost_has_no_note(tmp_path):
    store = LocalStore(make_experiment(tmp_path / "sweep", [DONE, HUNG], total_samples=5))
    assert plan_night(store).warnings == ()


def test_a_searcher_that_is_named_although_none_is_lost_is_noted_as_not_used(tmp_path):
    store = LocalStore(make_experiment(tmp_path / "sweep", [DONE, HUNG], total_samples=4))
    for can_search in (True, False):
        made = prepare_restore(store, "r1", options(can_search=can_search))
        notes = [text for text in made.plan.warnings if text.startswith("search_alg is not used")]
        assert len(notes) == can_search
