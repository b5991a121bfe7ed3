"""More of ../test_checkpoint_repair.py: newer checkpoints than the state knows, and none left at all."""

import json
import shutil
from pathlib import Path

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.commit import commit_restore
from tests.support.ray.real_restore import RESTORE_ID, Restoring


def go_on_unsaved(trial_dir: Path) -> None:
    """Leave what a driver leaves that dies between a reported checkpoint and its next snapshot."""
    newer = shutil.copytree(trial_dir / "checkpoint_000002", trial_dir / "checkpoint_000003")
    (newer / "state.json").write_text(json.dumps({"iteration": 4}))
    row = json.loads((trial_dir / "result.json").read_text().splitlines()[-1])
    row |= {"training_iteration": 4, "checkpoint_dir_name": newer.name}
    with (trial_dir / "result.json").open("a") as rows:
        rows.write(json.dumps(row) + "\n")


@pytest.mark.parametrize(("newest", "started_from"), [(False, 3), (True, 4)])
def test_one_newer_than_a_stale_state_is_used_by_choice(hosts, copied, newest, started_from):
    directory = copied("errored")
    (trial_dir,) = (path.parent for path in directory.glob("*/error.txt"))
    go_on_unsaved(trial_dir)
    restoring = Restoring(
        directory, "errored", hosts=hosts, trim_results=True, newest_checkpoint=newest
    )
    assert restoring.trial.iteration == started_from
    ran = restoring.run()
    assert ran.outcome.result == "finished", ran.output
    assert ran.outcome.metrics["started_from"] == started_from
    assert restoring.iterations() == [1, 2, 3, 4, 5, 6]


def test_with_none_left_it_starts_over_if_that_is_allowed(hosts, copied):
    directory = copied("limited")
    lost = lose_all(directory)
    restoring = Restoring(directory, "limited", hosts=hosts, allow_scratch=True)
    restoring.trial = next(t for t in restoring.plan.to_run if t.trial_dir == lost)
    assert "started from scratch" in restoring.trial.reason
    ran = restoring.run()
    assert ran.outcome.result == "finished", ran.output
    assert ran.outcome.metrics["started_from"] == 0
    assert restoring.iterations() == [1, 2, 3, 4, 5, 6]


def lose_all(directory: Path) -> str:
    """Delete every checkpoint of one errored trial; return the name of its directory."""
    trial_dir = min(path.parent for path in directory.glob("*/error.txt"))
    for checkpoint in trial_dir.glob("checkpoint_*"):
        shutil.rmtree(checkpoint)
    return trial_dir.name


def test_with_none_left_that_trial_alone_is_refused(hosts, copied):
    directory = copied("limited")
    lost = lose_all(directory)
    restoring = Restoring(directory, "limited", hosts=hosts)
    (refused,) = (trial for trial in restoring.plan.trials if trial.trial_dir == lost)
    assert refused.action is TrialAction.KEEP
    assert "no complete checkpoint is left; allow_scratch starts it over" in refused.reason
    assert any(refused.trial_id in warning for warning in restoring.plan.warnings)
    assert len(restoring.plan.to_run) == 2
    with pytest.raises(InvalidInputError):
        restoring.plan.trial("no such trial")
    for trial in restoring.plan.to_run:
        restoring.trial = trial
        assert restoring.run().outcome.result == "finished"
    summary = commit_restore(restoring.store, RESTORE_ID)
    after = {change.trial_id: change.status_after for change in summary.changes}
    assert after.pop(refused.trial_id) is TrialStatus.ERROR
    assert set(after.values()) == {TrialStatus.TERMINATED}
