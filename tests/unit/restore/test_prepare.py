"""From flags to seeds: rows of finished trials are read only if a restore runs them."""

from dataclasses import fields
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import RecordUnreadableError
from airflow_tune_restore.experiments.experiment import Experiment
from airflow_tune_restore.experiments.state import State, parse_state
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import read_part
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.storage.local import LocalStore
from tests.support.experiments.built import make_experiment, make_row, make_state


@pytest.mark.parametrize("choice", ["resume", "restart"])
def test_ended_trials_can_be_taken_up_again(tmp_path, choice):
    ended = {"training_iteration": 4, "done": True}
    rows = [make_row("ended", last_result=ended), make_row("failed", status="ERROR")]
    store = LocalStore(make_experiment(tmp_path / "sweep", rows))
    options = PrepareOptions(
        choices=PlanChoices(
            flags=ResumeFlags.parse({"finished": choice, "errored": "resume"}), strategy="per_trial"
        ),
        stale_after=timedelta(0),
    )
    prepared = prepare_restore(store, "r1", options)
    plan, _ = start_restore(prepared, holder="test", ttl_seconds=60.0)
    assert {trial.trial_id for trial in plan.to_run} == {"ended", "failed"}
    for trial_id, row in zip(("ended", "failed"), rows, strict=True):
        seed = parse_state(store.get(layout.seed_key("r1", trial_id)))
        assert [seed.trials[0].trial_id, *seed.rows] == [trial_id, trial_id]
        assert seed.rows == parse_state(make_state([row])).rows


def test_no_state_is_held_until_the_start(tmp_path):
    ended = {"training_iteration": 4, "done": True}
    rows = [make_row("ended", last_result=ended), make_row("failed", status="ERROR")]
    store = LocalStore(make_experiment(tmp_path / "sweep", rows))
    options = PrepareOptions(
        choices=PlanChoices(
            flags=ResumeFlags.from_flags(resume_errored=True), strategy="per_trial"
        ),
        stale_after=timedelta(0),
    )
    prepared = prepare_restore(store, "r1", options)
    assert not any(
        isinstance(getattr(prepared, f.name), Experiment | State) for f in fields(prepared)
    )


@pytest.mark.parametrize(("own", "foreign"), [(b'"r1', b'"r0'), (b'"failed', b'"other!')])
def test_a_task_takes_no_part_of_another_plan(tmp_path, own, foreign):
    """From the part, a task claims attempts: it must be that of its restore and of its trial."""
    store = LocalStore(make_experiment(tmp_path / "sweep", [make_row("failed", status="ERROR")]))
    choices = PlanChoices(flags=ResumeFlags.from_flags(resume_errored=True), strategy="per_trial")
    options = PrepareOptions(choices=choices, stale_after=timedelta(0))
    plan, _ = start_restore(prepare_restore(store, "r1", options), holder="test", ttl_seconds=60.0)
    assert read_part(store, "r1", "failed") == plan.part_of(plan.trial("failed"))
    key, escaped = layout.seed_key("r1", "failed"), own.replace(b'"', b'\\"')
    seed = store.get(key)
    assert escaped in seed
    store.put(key, seed.replace(escaped, foreign.replace(b'"', b'\\"')))
    with pytest.raises(RecordUnreadableError, match="the seed of another trial or restore"):
        read_part(store, "r1", "failed")
