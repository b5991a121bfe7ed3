"""The records of runners whose trials finished, for thousands of trials at once.

They are written straight, through keys and records alone, without a claim or a plan: so they are the same
for every version of the rest of the package.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest, TrialAction


def finished_runs(state: bytes, items: list[Mapping[str, Any]]) -> Iterator[dict[str, bytes]]:
    """Yield for each item of the plan task's output what its runner left, by key.

    `state` is that of the experiment, from which all items are resumed.
    """
    document = json.loads(state)
    rows = {json.loads(row[0])["trial_id"]: row for row in document["trial_data"]}
    for item in items:
        yield _finished_run({**document, "trial_data": [_finished(rows[item["trial_id"]])]}, item)


def _finished(row: list[str]) -> list[str]:
    return [json.dumps({**json.loads(row[0]), "status": "TERMINATED"}, indent=2), row[1]]


def _finished_run(snapshot: dict[str, Any], item: Mapping[str, Any]) -> dict[str, bytes]:
    attempt = (item["restore_id"], item["trial_id"], 1)
    names = dict(zip(("restore_id", "trial_id", "attempt"), attempt, strict=True))
    request = RunnerRequest(
        **names,
        experiment=item["experiment"],
        trainable="project.train:train",
        trainable_name="train",
        action=item["action"] or TrialAction.RESUME,
        checkpoint=item["checkpoint"],
        iteration=item["iteration"],
        nonce="0123456789abcdef",
    )
    outcome = RunnerOutcome(
        **names,
        result=Result.FINISHED,
        status="TERMINATED",
        final_trial_id=item["trial_id"],
        iteration=item["iteration"] + 1,
    )
    return {
        layout.request_key(*attempt): request.to_json(),
        layout.heartbeat_key(*attempt): b"{}",
        layout.snapshot_key(*attempt): json.dumps(snapshot).encode(),
        layout.outcome_key(*attempt): outcome.to_json(),
    }
