"""The trainable of a restore, if rows and tuner.pkl name several."""

from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.storage.local import LocalStore
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row


def prepare(directory, *, can_start=False, **choices):
    flags = ResumeFlags.from_flags(resume_errored=True)
    options = PrepareOptions(
        choices=PlanChoices(flags=flags, **choices), stale_after=timedelta(0), can_start=can_start
    )
    return prepare_restore(LocalStore(directory), "r1", options)


def of(trainable, trial_id, status="ERROR"):
    return make_row(trial_id, status=status, trainable_name=trainable)


def actions(plan):
    return {trial.trial_id: trial.action.value for trial in plan.trials}


def test_only_the_trials_of_tuner_pkls_trainable_are_run(tmp_path):
    rows = [of("train", "mine"), of("other", "failed"), of("other", "hung", "RUNNING")]
    prepared = prepare(make_experiment(tmp_path / "x", rows))
    assert prepared.plan.trainable_name == "train"
    assert actions(prepared.plan) == {"mine": "resume", "failed": "keep", "hung": "keep"}
    kept = prepared.plan.trial("failed")
    assert "it was run with the trainable 'other', and this restore runs 'train'" in kept.reason
    assert f"trial failed: {kept.reason}" in prepared.plan.warnings


def test_without_tuner_pkl_each_trainable_has_its_turn(tmp_path):
    rows = [of("a", "a1"), of("b", "b1"), of("b", "b2")]
    directory = make_experiment(tmp_path / "x", rows)
    plan = prepare(directory).plan
    assert (plan.trainable_name, plan.ignore_tuner) == ("b", True)
    assert actions(plan) == {"a1": "keep", "b1": "resume", "b2": "resume"}

    rows = [of("a", "a1"), of("b", "b1", "TERMINATED"), of("b", "b2", "TERMINATED")]
    make_experiment(directory, rows)
    plan = prepare(directory).plan
    assert (plan.trainable_name, actions(plan)["a1"]) == ("a", "resume")


def test_nothing_is_left_of_tuner_pkls_trainable(tmp_path):
    rows = [of("train", "mine", "TERMINATED"), of("other", "failed")]
    directory = make_experiment(tmp_path / "x", rows, total_samples=2)
    why = prepare(directory)
    assert isinstance(why, str)
    assert "--ignore-tuner (ignore_tuner=True) resumes this one" in why
    plan = prepare(directory, ignore_tuner=True).plan
    assert (plan.trainable_name, actions(plan)["failed"]) == ("other", "resume")


def test_the_choice_travels_with_plan_and_request(tmp_path):
    prepared = prepare(make_experiment(tmp_path / "x", [of("train", "t")]), ignore_tuner=True)
    plan, _ = start_restore(prepared, holder="test", ttl_seconds=60.0)
    assert RestorePlan.from_json(plan.to_json()).ignore_tuner
    assert claim_attempt(prepared.store, plan, "t", RunnerSettings(trainable="m:t")).ignore_tuner
    assert (plan.metric, plan.mode) == (None, None)


def test_what_never_started_has_nothing_but_its_tuner_pkl(tmp_path):
    directory = make_experiment(tmp_path / "x", [of("train", "t")])
    (directory / STATE_NAME).unlink()
    with pytest.raises(InvalidInputError, match=r"all there is of it: leave out ignore_tuner"):
        prepare(directory, ignore_tuner=True, can_start=True)
    assert prepare(directory, can_start=True).plan.continues_search


def test_samples_are_drawn_without_it_too(tmp_path):
    rows = [of("old", "t", "TERMINATED")]
    prepared = prepare(make_experiment(tmp_path / "x", rows, total_samples=3))
    assert prepared.plan.only_continues_search
    assert (prepared.plan.ignore_tuner, prepared.plan.trainable_name) == (True, "old")
