"""A trial that fails at the same place night after night, until the user says that it is mended."""

from ray.tune import ExperimentAnalysis

from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.restore.release import release_trials
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.fs import open_store
from tests.support.ray.real_restore import Restoring
from tests.support.records import plan_night

FLAGS = ResumeFlags.from_flags(resume_errored=True)


def statuses(directory) -> dict[str, tuple[str, int]]:
    """Return what Ray's own analysis reads of each trial: its status and its last iteration."""
    analysis = ExperimentAnalysis(directory.as_posix())
    return {
        trial.trial_id: (trial.status, (trial.last_result or {}).get("training_iteration", 0))
        for trial in analysis.trials
    }


def night(hosts, directory, number: int, *, healed: bool) -> tuple[Restoring, str, object]:
    restoring = Restoring(
        directory, "errored", hosts=hosts, healed=healed, restore_id=f"night-{number}"
    )
    ran = restoring.run()
    summary = commit_restore(restoring.store, restoring.restore_id)
    return restoring, ran, summary


def test_a_trial_that_fails_twice_at_one_place_is_quarantined_released_and_undone(hosts, copied):
    directory = copied("errored")
    store = open_store(str(directory))
    before = statuses(directory)

    restoring, ran, summary = night(hosts, directory, 1, healed=False)
    trial_id = restoring.trial.trial_id
    assert ran.outcome.cause == "trainable", ran.output
    assert ran.outcome.error_type == "RuntimeError"
    path, _, function = ran.outcome.place.partition(":")
    assert path == "tests/trainables.py"
    assert function.endswith(" in misfortune")
    assert summary.quarantined == ()
    assert plan_night(store, flags=FLAGS).to_run

    _, ran, summary = night(hosts, directory, 2, healed=False)
    assert summary.quarantined == (trial_id,)
    assert f"tune-restore release {store.uri}" in summary.headline()
    plan = plan_night(store, flags=FLAGS)
    assert plan.to_run == ()
    (kept,) = plan.quarantined
    assert kept.status == "ERROR"
    assert f"RuntimeError at {ran.outcome.place} after iteration 3, 2 times" in kept.reason

    release_trials(store, [trial_id], holder="test")
    _, ran, _ = night(hosts, directory, 3, healed=True)
    assert ran.outcome.result == "finished", ran.output
    assert len(read_ledger(store)[0].trials[trial_id].released) == 2
    finished = statuses(directory)
    assert finished[trial_id] == ("TERMINATED", 6)

    # each undo takes back one night, newest first
    assert undo_commit(store, holder="test").restore_id == "night-3"
    assert statuses(directory)[trial_id] == ("ERROR", 3)
    assert undo_commit(store, holder="test").restore_id == "night-2"
    assert undo_commit(store, holder="test").restore_id == "night-1"
    assert statuses(directory) == before

    # and the experiment is restored again from there
    _, ran, summary = night(hosts, directory, 4, healed=True)
    assert ran.outcome.result == "finished", ran.output
    assert statuses(directory) == finished
