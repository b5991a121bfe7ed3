"""Whether an experiment ended as one whose restore nobody disturbed: every difference, in words."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.storage.base import ObjectStore
from tests.support.ray.tuner_restore import VOLATILE
from tests.support.storage.proxy import Write

Files = dict[str, bytes]
OTHERWISE_EACH_TIME = VOLATILE | {"started_from", "checkpoint_dir_name"}
"""A killed trial starts from a later checkpoint, and numbers its own after all that exist."""

CHANGES = ("result.json", "progress.csv", "error.txt", "error.pkl", "params.json", "params.pkl")
"""What a resumed trial writes in its own directory; checkpoints are only ever added."""


@dataclass(frozen=True)
class Ended:
    """An experiment at the end of a round.

    Args:
        store: Rooted at it.
        files: All of it.
        writes: All that was written to it, in order.
        journal: What its trainables wrote down: which process trained which trial when.
    """

    store: ObjectStore
    files: Files
    writes: list[Write]
    journal: list[dict[str, Any]]


def find_losses(failed: Files, undisturbed: Files, ended: Ended) -> list[str]:
    """Compare with the failed experiment as it was, and with its undisturbed restore."""
    return [
        *_changed_originals(failed, ended.files),
        *_rows(undisturbed, ended.files),
        *_checkpoints(undisturbed, ended),
        *_states(failed, undisturbed, ended),
        *_overlaps_of_attempts(ended.files),
        *_overlaps_of_processes(ended.journal),
    ]


def _changed_originals(failed: Files, files: Files) -> Iterable[str]:
    for key, body in failed.items():
        if key not in files:
            yield f"{key} is gone"
        elif files[key] != body and PurePosixPath(key).name not in CHANGES:
            yield f"{key} was changed"
    for key in files.keys() - failed.keys():
        is_ours = key.startswith(layout.ROOT) or layout.is_committed_state(key)
        if "/" not in key and not is_ours:
            yield f"{key} appeared in the root"


def _rows(undisturbed: Files, files: Files) -> Iterable[str]:
    for key in undisturbed:
        if key.endswith("/result.json") and not key.startswith(layout.ROOT):
            wanted, found = _results(undisturbed[key]), _results(files.get(key, b""))
            if found != wanted:
                numbers = [row.get("training_iteration") for row in found]
                yield f"{key}: iterations {numbers}, not as undisturbed: {_first_other(wanted, found)}"
        if key.endswith("/progress.csv") and not key.startswith(layout.ROOT):
            columns, numbers = _table(undisturbed[key]), _table(files.get(key, b""))
            if columns != numbers:
                yield f"{key}: iterations {numbers} instead of {columns}"


def _first_other(wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    for old, new in zip(wanted, found, strict=False):
        if old != new:
            return str({k: (old.get(k), new.get(k)) for k in old | new if old.get(k) != new.get(k)})
    return f"{len(wanted)} rows wanted, {len(found)} found"


def _results(body: bytes) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in body.splitlines()]
    return [
        {k: v for k, v in row.items() if k not in OTHERWISE_EACH_TIME and not isinstance(v, dict)}
        for row in rows
    ]


def _table(body: bytes) -> list[str]:
    return [row["training_iteration"] for row in csv.DictReader(io.StringIO(body.decode()))]


def _checkpoints(undisturbed: Files, ended: Ended) -> Iterable[str]:
    """Look whether each checkpoint ever written is there as it was written, and all that are named."""
    files = ended.files
    wanted, found = _checkpointed(undisturbed), _checkpointed(files)
    for trial_dir, iterations in wanted.items():
        missing = set(iterations.values()) - set(found.get(trial_dir, {}).values())
        if missing:
            yield f"{trial_dir}: no checkpoint of iterations {sorted(missing)}"
    for key, body in files.items():
        if not key.endswith("/result.json") or key.startswith(layout.ROOT):
            continue
        trial_dir = key.rpartition("/")[0]
        for row in map(json.loads, body.splitlines()):
            name = row.get("checkpoint_dir_name")
            if name and found.get(trial_dir, {}).get(name) != row["training_iteration"]:
                yield f"{trial_dir}: row {row['training_iteration']} names {name}, which is not its own"
    contents: dict[str, str] = {}
    for write in ended.writes:
        if write.key.endswith("/"):
            continue  # a directory's marker
        if f"/{layout.CHECKPOINT_PREFIX}" in write.key and not write.key.startswith(layout.ROOT):
            if write.key not in files:
                yield f"{write.key} was written and is gone"
            if contents.setdefault(write.key, write.sha256) != write.sha256:
                yield f"{write.key} was overwritten with something else"


def _checkpointed(files: Files) -> dict[str, dict[str, int]]:
    """Trial directory -> checkpoint -> the iteration it holds."""
    found: dict[str, dict[str, int]] = {}
    for key, body in files.items():
        path = PurePosixPath(key)
        if path.name == "state.json" and path.parent.name.startswith(layout.CHECKPOINT_PREFIX):
            trial = found.setdefault(path.parent.parent.as_posix(), {})
            trial[path.parent.name] = json.loads(body)["iteration"]
    return found


def _states(failed: Files, undisturbed: Files, ended: Ended) -> Iterable[str]:
    """One state a restore that changed something, the newest holds everything, nobody has the lease."""
    files, store = ended.files, ended.store
    made: list[str] = []
    for key, body in files.items():
        if key.startswith(layout.ROOT) and key.endswith("/commit.json"):
            record = json.loads(body)
            if not record["is_done"]:
                yield f"{key} was never done"
            if record["state_file"]:
                made.append(record["state_file"])
    there = [key for key in files if "/" not in key and layout.is_state_file(key)]
    if sorted(made) != sorted(set(there) - failed.keys()):
        yield f"states {sorted(there)}, but restores made {sorted(made)}"
    experiment = read_experiment(store)
    newest = experiment.state_file.name
    if newest != max(there):
        yield f"{newest} is read, but Ray takes {max(there)}"
    rows = _statuses(files[newest])
    if rows != _statuses(undisturbed[max(k for k in undisturbed if layout.is_state_file(k))]):
        yield f"{newest} holds {rows}"
    for key in [w.key for w in ended.writes]:
        if layout.is_state_file(key) and sum(w.key == key for w in ended.writes) > 1:
            yield f"{key} was written more than once"
    for claim in lease.unreleased(store, but=""):
        yield f"lease {claim.epoch} of {claim.restore_id} was never released"


def _statuses(body: bytes) -> list[tuple[Any, ...]]:
    rows = [(json.loads(a), json.loads(b)) for a, b in json.loads(body)["trial_data"]]
    return [
        (
            trial["trial_id"],
            trial["status"],
            run["last_result"]["training_iteration"],
            run["last_result"]["score"],
            trial["relative_logdir"],
        )
        for trial, run in rows
    ]


def _overlaps_of_attempts(files: Files) -> Iterable[str]:
    """Look at the runners' beats: the next attempt began to run after the last beat of those before."""
    ran: dict[str, list[tuple[str, str, str]]] = {}
    for key, body in files.items():
        path = PurePosixPath(key)
        if path.name == "heartbeat.json" and "attempts" in path.parts:
            beat = json.loads(body)
            if beat["runs_since"]:
                span = (beat["runs_since"], beat["at"], path.parent.as_posix())
                ran.setdefault(path.parts[-4], []).append(span)
    for spans in ran.values():
        spans.sort()
        for (_, end, one), (begin, _, other) in pairwise(spans):
            if begin < end:
                yield f"{other} ran from {begin} while {one} ran to {end}"


def _overlaps_of_processes(journal: list[dict[str, Any]]) -> Iterable[str]:
    """Look at the trainables' journal: once another process trains a trial, the first one is over."""
    for trial in {entry["trial"] for entry in journal}:
        entries = sorted((e for e in journal if e["trial"] == trial), key=lambda e: e["at"])
        pids = [entry["pid"] for entry in entries]
        for pid in set(pids):
            first, last = pids.index(pid), len(pids) - 1 - pids[::-1].index(pid)
            if set(pids[first:last]) > {pid}:
                yield f"{trial} was trained by {sorted(set(pids[first:last]))} at the same time"
