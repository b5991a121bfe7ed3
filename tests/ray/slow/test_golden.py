"""The golden failed experiments are what Ray makes of the same sweeps today."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.golden import make_failed
from tests.support import FAILED
from tests.support.experiments.failed import BATCHES, TRAINABLES, rows

TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
SESSION = re.compile(r"_[0-9a-f]{5}_|_[0-9a-f]{8}_(?=\d)")
DRAWN = frozenset({"pbt", "hyperband"})
"""Which trial is stopped or copied depends on who reported first."""


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: batch[0])
def test_experiments_made_anew_are_as_the_golden_ones(batch, tmp_path):
    made = tmp_path / "golden"
    # in a place of its own: two sessions may run at once
    make_failed.make(made, list(batch), place=tmp_path / "place")
    for kind in batch:
        assert describe(made / kind, kind) == describe(FAILED / kind, kind), kind


def test_there_is_one_of_every_kind():
    assert {path.name for path in FAILED.iterdir()} == set(TRAINABLES)


def describe(experiment: Path, kind: str) -> Mapping[str, Any]:
    """Return what two runs of a sweep have in common: no ids, no times, no addresses."""
    trials = [_describe_trial(experiment, trial, run) for trial, run in rows(experiment)]
    if kind in DRAWN:
        trials = [{"status": trial["status"]} for trial in trials]
    return {
        "files": sorted({_stable(path.name) for path in experiment.iterdir() if path.is_file()}),
        "trials": sorted(trials, key=json.dumps),
    }


def _describe_trial(experiment: Path, trial: dict, run: dict) -> dict[str, Any]:
    directory = experiment / trial["relative_logdir"] if trial["relative_logdir"] else None
    files = directory.rglob("*") if directory and directory.is_dir() else []
    return {
        "status": trial["status"],
        "config": sorted(trial["config"]),
        "iteration": run["last_result"].get("training_iteration", 0),
        "failures": run["num_failures"],
        "has_error": run["error_filename"] is not None,
        "files": sorted(_stable(path.relative_to(directory).as_posix()) for path in files),
        "fields": sorted({*trial, *run}),
    }


def _stable(name: str) -> str:
    return SESSION.sub("_ID_", TIME.sub("TIME", name))
