"""One run of coupled trials is paused with its window, and the next restore goes on at once: real Ray.

The end equals that of `Tuner.restore` on a copy.
"""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.failed import TRAINABLES, environment
from tests.support.ray.real_restore import TRAINABLE_ENV

EVERY = [1, 2, 3, 4, 5, 6]
SECONDS = 25
"""Long enough for most machines to reach iteration 4. Whatever was reached, it must be kept."""

SAME = ("trial_id", "status", "config")


def restore(
    experiment: Path, kind: str, night: str, env: dict[str, str], *, window: float | None
) -> tuple[CommitSummary, RunnerOutcome]:
    """Restore all trials in one run, and commit. The experiment counts as dead by the usual silence."""
    store = open_store(str(experiment))
    end = None if window is None else datetime.now(UTC) + timedelta(seconds=window)
    flags = ResumeFlags.from_flags(resume_errored=True)
    options = PrepareOptions(
        choices=PlanChoices(flags=flags, strategy="whole_experiment"),
        pause_at=end,
        **({"stale_after": timedelta(0)} if window else {}),
    )
    prepared = prepare_restore(store, night, options)
    assert isinstance(prepared, PreparedRestore), prepared
    plan, _ = start_restore(prepared, holder="test", ttl_seconds=120)
    settings = RunnerSettings(trainable=TRAINABLES[kind], imports=["tests.trainables"])
    request = claim_attempt(store, plan, layout.WHOLE_EXPERIMENT, settings)
    launcher = LocalLauncher(
        env={**TRAINABLE_ENV, "TUNE_TEST_HEALED": "1", **env}, pythonpath=[ROOT.as_posix()]
    )
    process = launcher.start(request)
    lines = list(process.lines())
    outcome = AttemptRecords.of(store, request).outcome(request.attempt)
    assert outcome is not None, "\n".join(lines)
    return commit_restore(store, plan.restore_id), outcome


def iterations(experiment: Path) -> dict[str, list[int]]:
    return {
        path.parent.name: [
            json.loads(line)["training_iteration"] for line in path.read_text().splitlines()
        ]
        for path in experiment.glob("*/result.json")
    }


def restore_by_ray(experiment: Path, kind: str, scratch: Path) -> None:
    cases = scratch / "cases.json"
    case = {
        "uri": str(experiment),
        "trainable": TRAINABLES[kind],
        "flags": {"resume_errored": True},
    }
    cases.write_text(json.dumps([case]))
    subprocess.run(
        [sys.executable, "-m", "tests.support.ray.tuner_restore", "restore", str(cases)],
        env=environment(TUNE_TEST_HEALED="1"), cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip


def ends(experiment: Path) -> list[tuple]:
    trials = read_experiment(open_store(str(experiment))).trials
    return sorted((t.trial_id, t.status, t.iteration) for t in trials)


@pytest.mark.parametrize("kind", ["limited", "asha"])
def test_coupled_trials_are_paused_and_go_on_at_once(copied, gate, tmp_path, kind):
    theirs = copied(kind, "theirs")
    experiment = copied(kind)
    summary, outcome = restore(experiment, kind, "r1", gate.env, window=SECONDS)
    assert outcome.result == "paused"
    assert (summary.failed, summary.broke_off) == ((), "")
    assert summary.paused
    reached = iterations(experiment)
    assert all(rows == EVERY[: len(rows)] for rows in reached.values())

    gate.open()
    summary, outcome = restore(experiment, kind, "r2", gate.env, window=None)
    assert (outcome.result, summary.is_done) == ("finished", True)
    after = iterations(experiment)
    assert all(rows == EVERY[: len(rows)] for rows in after.values())
    assert all(after[name][: len(rows)] == rows for name, rows in reached.items())

    restore_by_ray(theirs, kind, tmp_path)
    assert ends(experiment) == ends(theirs)
