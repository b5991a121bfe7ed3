"""One restore of a real experiment by real runners, step by step, for tests that need Ray."""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.launch.process import RunnerProcess
from airflow_tune_restore.protocol import layout, lease_objects
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import RunnerOutcome, RunnerProgress, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fs import open_store
from tests.support import NO_SPARE_WORKERS, ROOT
from tests.support.experiments.failed import TRAINABLES
from tests.support.ray.kept import TTL_SECONDS, HostLauncher, HostRun, Hosts
from tests.support.records import prepare_night

RESTORE_ID = "r1"
TRAINABLE_ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    **NO_SPARE_WORKERS,
}


Process = RunnerProcess | HostRun


@dataclass(frozen=True)
class Ran:
    """How one attempt went."""

    request: RunnerRequest
    code: int
    lines: list[str]
    outcome: RunnerOutcome | None

    @property
    def progress(self) -> list[RunnerProgress]:
        found = (RunnerProgress.from_line(line) for line in self.lines)
        return [item for item in found if item is not None]

    @property
    def output(self) -> str:
        return "\n".join(self.lines)


class Restoring:
    """A planned restore; `run` makes one attempt after another of one of its trials.

    Each is a runner of its own with a Ray of its own, or, with `hosts`, runs in the kept runner.
    """

    def __init__(
        self, uri: str | Path, kind: str, *, healed: bool = True, env: dict[str, str] | None = None,
        python: str = sys.executable, restore_id: str = RESTORE_ID, hosts: Hosts | None = None,
        ttl_seconds: float | None = None, **plan: Any,
    ) -> None:  # fmt: skip
        self.store: ObjectStore = open_store(str(uri))
        self.restore_id = restore_id
        self.trainable = TRAINABLES[kind]
        self.imports = [] if ":" in self.trainable else ["tests.trainables"]
        env = {**TRAINABLE_ENV, "TUNE_TEST_HEALED": "1" if healed else "0", **(env or {})}
        self.address = hosts.address if hosts else None
        self.launcher = (
            HostLauncher(hosts.runner, env)
            if hosts
            else LocalLauncher(python=python, env=env, pythonpath=[ROOT.as_posix()])
        )
        # a runner that ends itself because it was silent for too long ends its host
        ttl_seconds = ttl_seconds or (TTL_SECONDS if hosts else lease_objects.DEFAULT_TTL_SECONDS)
        prepared = prepare_night(self.store, restore_id, **plan)
        self.plan = start_plan(prepared, holder="test", ttl_seconds=ttl_seconds)
        self.trial = self.plan.to_run[0]

    def claim(self, **changes: Any) -> RunnerRequest:
        """Claim the next attempt; `changes` are written over its stored request."""
        request = claim_attempt(
            self.store,
            self.plan,
            self.trial.trial_id,
            RunnerSettings(trainable=self.trainable, address=self.address, imports=self.imports),
        )
        return self.changed(request, **changes)

    def changed(self, request: RunnerRequest, **changes: Any) -> RunnerRequest:
        """Write changes over a stored request."""
        if changes:
            request = replace(request, **changes)
            self.store.put(_request_key(request), request.to_json())
        return request

    def start(self, **changes: Any) -> tuple[RunnerRequest, Process]:
        request = self.claim(**changes)
        return request, self.launcher.start(request)

    def run(self, **changes: Any) -> Ran:
        return self.finish(*self.start(**changes))

    def finish(self, request: RunnerRequest, process: Process, seen: tuple[str, ...] = ()) -> Ran:
        lines = [*seen, *process.lines()]
        code = process.wait()
        if os.environ.get("SHOW_RUNNERS"):
            print(f"--- attempt {request.attempt}: exit {code}", *lines, sep="\n")
        outcome = AttemptRecords(self.store, self.restore_id, request.trial_id).outcome(
            request.attempt
        )
        return Ran(request, code, lines, outcome)

    def run_until(self, iteration: int, **changes: Any) -> tuple[RunnerRequest, Process, list[str]]:
        """Start an attempt and return once it has reported an iteration."""
        request, process = self.start(**changes)
        seen: list[str] = []
        for line in process.lines():
            seen.append(line)
            progress = RunnerProgress.from_line(line)
            if progress is not None and progress.iteration >= iteration:
                return request, process, seen
        raise AssertionError("it ended before:\n" + "\n".join(seen))

    def snapshot(self, attempt: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the decoded row of an attempt's snapshot."""
        body = self.store.get(layout.snapshot_key(self.restore_id, self.trial.trial_id, attempt))
        (row,) = json.loads(body)["trial_data"]
        return json.loads(row[0]), json.loads(row[1])

    def results(self, trial_dir: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of result.json."""
        body = self.store.get(f"{trial_dir or self.trial.trial_dir}/result.json").decode()
        return [json.loads(line) for line in body.splitlines()]

    def iterations(self, trial_dir: str | None = None) -> list[int]:
        return [row["training_iteration"] for row in self.results(trial_dir)]

    def csv_iterations(self, trial_dir: str | None = None) -> list[int]:
        import csv
        import io

        body = self.store.get(f"{trial_dir or self.trial.trial_dir}/progress.csv").decode()
        return [int(row["training_iteration"]) for row in csv.DictReader(io.StringIO(body))]


def wrote(restoring: Restoring, iteration: int) -> bool:
    """Whether the last rows of result.json and progress.csv are of it; they may just be written anew."""
    try:
        return restoring.iterations()[-1] == restoring.csv_iterations()[-1] == iteration
    except (IndexError, KeyError, TypeError, ValueError):
        return False


def _request_key(request: RunnerRequest) -> str:
    return layout.request_key(request.restore_id, request.trial_id, request.attempt)
