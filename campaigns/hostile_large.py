"""Files of a gigabyte under the names of small ones: an error for that experiment, the others go on."""

import contextlib
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.read_checkpoints import read_checkpoint_choices
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords, wait_until_all_over
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fsspec_store import FsspecStore
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.location import Location
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row
from tests.support.records import leave_attempt, start_night

PLACES = {
    "state": STATE_NAME,
    "older state": STATE_NAME.replace("10-00-00", "09-00-00"),
    "tuner.pkl": "tuner.pkl",
    "searcher": "basic-variant-state-2026-11-23_23-00-00.json",
    "result.json": "dir_bad/result.json",
    "plan.json": layout.plan_key("r1"),
    "commit.json": layout.commit_key("r1"),
    "claim": layout.lease_claim_key(1),
    "heartbeat": layout.heartbeat_key("r1", "bad", 1),
    "snapshot": layout.snapshot_key("r1", "bad", 1),
    "outcome.json": layout.outcome_key("r1", "bad", 1),
}


def read_all(scratch: Path, name: str, size: int, *, streamed: bool = False) -> None:
    """Make an experiment in the middle of a restore beside a good one, spoil it, and read both."""
    prefix = scratch / re.sub(r"[^a-z]", "_", name)
    make_experiment(prefix / "good", [make_row("t")])
    bad = _restored(prefix / "bad")
    large = prefix / "bad" / PLACES[name]
    large.parent.mkdir(parents=True, exist_ok=True)
    with large.open("wb") as file:
        file.truncate(size)
    store: ObjectStore = LocalStore(prefix)
    if streamed:
        store = FsspecStore(_Zeros(prefix), Location.parse("zeros://bucket"))  # type: ignore[arg-type]
        bad = store.at("bad")
    reports = {report.name: report for report in scan(store)}
    assert reports["good"].health is not Health.UNREADABLE, reports
    assert (reports["bad"].health is Health.UNREADABLE) == (name == "state"), reports["bad"]
    for read in (_plan, _attempts, lambda store: lease.check_held(store, "r1"), _commit):
        with contextlib.suppress(TuneRestoreError):
            read(bad)
    shutil.rmtree(prefix)


def _restored(directory: Path) -> ObjectStore:
    rows = [make_row("done"), make_row("bad", status="ERROR", checkpoint=True)]
    store = LocalStore(make_experiment(directory, rows))
    plan = start_night(store, strategy="per_trial", allow_scratch=True)
    request = leave_attempt(store, plan, "bad")
    store.delete(layout.outcome_key("r1", "bad", request.attempt))  # it was killed
    return store


def _plan(store: ObjectStore) -> None:
    experiment = read_experiment(store)
    read_checkpoint_choices(store, list(experiment.trials))


def _attempts(store: ObjectStore) -> None:
    now = iter(range(10**6))
    wait_until_all_over(
        store,
        [AttemptId("r1", "bad", 1)],
        monotonic=lambda: next(now),
        sleep=lambda _seconds: None,
    )
    AttemptRecords(store, "r1", "bad").outcome()


def _commit(store: ObjectStore) -> None:
    commit_restore(store, "r1")


class _Zeros:
    """A directory as an fsspec filesystem that calls every file one byte long; large ones are blanks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def invalidate_cache(self, _path: str) -> None:
        pass

    def ls(self, path: str, *, detail: bool) -> list[dict[str, Any]]:
        assert detail
        return [
            {
                "name": f"{path}/{item.name}",
                "type": "directory" if item.is_dir() else "file",
                "size": 1,
                "mtime": datetime.now(UTC) - timedelta(days=1),
            }
            for item in self._where(path).iterdir()
        ]

    def cat_file(self, path: str, *, start: int, end: int | None) -> bytes:
        where = self._where(path)
        size = where.stat().st_size
        if size < 1024**2:
            return where.read_bytes()[start:end]
        assert end is not None, f"{path} is read without a limit"
        return b" " * min(size, end)

    def pipe_file(self, path: str, body: bytes, mode: str = "overwrite") -> None:
        where = self._where(path)
        if mode == "create" and where.exists():
            raise FileExistsError(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(body)

    def _where(self, path: str) -> Path:
        return self._directory / path.removeprefix("bucket").strip("/")
