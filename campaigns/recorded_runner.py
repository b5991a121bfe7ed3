"""A runner without Ray: it waits, beats and is fenced as a real one, then writes what one had written.

    python -m campaigns.recorded_runner -m airflow_tune_restore.runner run …

`TUNE_TEST_RECORDING` names a directory with an experiment after an undisturbed restore by real runners.
What it writes, and in which order, is what real runners wrote; only the training in between is left out.
It makes rounds cheap whose kills hit the other steps of the chain.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_tune_restore.exceptions import LeaseLostError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import (
    EXIT_FENCED,
    EXIT_FINISHED,
    RunnerOutcome,
    RunnerRequest,
)
from airflow_tune_restore.runner.heartbeat import FencedError, Heartbeat
from airflow_tune_restore.runner.outcome import now
from airflow_tune_restore.runner.tune.result_files import Start, prepare_results
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fs import open_store


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("command")
    parser.add_argument("--experiment")
    parser.add_argument("--request")
    parser.add_argument("--parent-pid", type=int)
    options = parser.parse_args(arguments[1:])  # after -m
    store = open_store(options.experiment)
    request = RunnerRequest.from_json(store.get(options.request))
    heartbeat = Heartbeat(store, request, options.parent_pid)
    try:
        heartbeat.start()
        run(store, request, heartbeat)
    except (FencedError, LeaseLostError) as error:
        print(f"error: {error}")
        return EXIT_FENCED
    return EXIT_FINISHED


def run(store: ObjectStore, request: RunnerRequest, heartbeat: Heartbeat) -> None:
    started_at = now()
    for attempt in AttemptRecords(store, request.restore_id, request.trial_id).numbers():
        if attempt < request.attempt:
            AttemptRecords(store, request.restore_id, request.trial_id).wait_until_over(attempt)
    heartbeat.mark_running()
    heartbeat.check_or_end()
    recording = Path(os.environ["TUNE_TEST_RECORDING"])
    (recorded,) = (recording / layout.ROOT).glob(f"*/trials/{request.trial_id}/attempts/000001")
    state = read_state(recorded)
    (row,) = state["trial_data"]
    trial_dir = json.loads(row[0])["relative_logdir"]
    prepare_results(store, request, trial_dir, Start(request.checkpoint or "", request.iteration))
    files = recording / trial_dir
    for path in sorted(files.glob("checkpoint_*/*")):
        key = f"{trial_dir}/{path.parent.name}/{path.name}"
        if path.parent.name not in {entry.name for entry in store.list_dir(trial_dir)}:
            store.put(key, path.read_bytes())
    heartbeat.check_or_end()
    for name in (layout.RESULT_FILE, layout.PROGRESS_FILE):
        store.put(f"{trial_dir}/{name}", (files / name).read_bytes())
    where = (request.restore_id, request.trial_id, request.attempt)
    store.put(layout.snapshot_key(*where), json.dumps(state).encode())
    heartbeat.stop()
    outcome = RunnerOutcome.from_json((recorded / "outcome.json").read_bytes())
    outcome = replace(
        outcome,
        restore_id=request.restore_id,
        attempt=request.attempt,
        started_at=started_at,
        ended_at=now(),
    )
    store.put(layout.outcome_key(*where), outcome.to_json())


def read_state(attempt: Path) -> dict[str, Any]:
    """Return the last state of a run of all, with the row of one trial of it alone."""
    restore, trial_id = attempt.parents[3], attempt.parents[1].name
    state = json.loads((restore / "whole/attempts/000001/state.json").read_text())
    state["trial_data"] = [
        r for r in state["trial_data"] if json.loads(r[0])["trial_id"] == trial_id
    ]
    return state


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
