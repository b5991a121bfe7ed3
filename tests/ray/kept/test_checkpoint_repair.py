"""Checkpoints that the state names and that are not there any more: what plan and run make of it."""

import shutil
from pathlib import Path

import pytest

from airflow_tune_restore.restore.plan import TrialPlan
from tests.support.ray.real_restore import Restoring


def empty(checkpoint: Path) -> None:
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def half_upload(checkpoint: Path) -> None:
    """Leave what a client leaves that dies between two files: the directory, and not all of them."""
    for path in list(checkpoint.iterdir()):
        path.unlink()
    (checkpoint / ".metadata.json").write_text("{}")


@pytest.mark.parametrize("damage", [shutil.rmtree, empty, half_upload])
def test_the_plan_names_the_newest_complete_one(copied, damage):
    directory = copied("errored")
    damage(newest(directory))
    assert_repaired(Restoring(directory, "errored").trial)


def test_the_newest_complete_one_is_used_and_the_plan_says_so(hosts, copied):
    directory = copied("errored")
    half_upload(newest(directory))
    restoring = Restoring(directory, "errored", hosts=hosts, trim_results=True)
    assert_repaired(restoring.trial)
    ran = restoring.run()
    assert ran.outcome.result == "finished", ran.output
    assert ran.outcome.metrics["started_from"] == 2
    assert restoring.iterations() == restoring.csv_iterations() == [1, 2, 3, 4, 5, 6]


def newest(directory: Path) -> Path:
    """Return the newest checkpoint of the trial that failed, of iteration 3."""
    (trial_dir,) = (path.parent for path in directory.glob("*/error.txt"))
    return trial_dir / "checkpoint_000002"


def assert_repaired(planned: TrialPlan) -> None:
    assert (planned.checkpoint, planned.iteration) == ("checkpoint_000001", 2)
    assert "recorded checkpoint_000002 is" in planned.reason
    assert "repaired to checkpoint_000001, the newest complete one" in planned.reason
