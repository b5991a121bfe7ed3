"""The campaign's judge finds what it is there to find: each kind of harm, done by hand."""

import hashlib
import json
from dataclasses import replace

import pytest

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.storage.memory import MemoryStore
from campaigns.checks import Ended, find_losses
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt, start_night
from tests.support.storage.proxy import Proxy, Write

ROWS, TABLE = "dir/result.json", "dir/progress.csv"
CHECKPOINT = "dir/checkpoint_00000{}/state.json"


def result(iteration):
    row = {"training_iteration": iteration, "score": iteration, "pid": iteration}
    return json.dumps({**row, "checkpoint_dir_name": f"checkpoint_00000{iteration}"}) + "\n"


def fill(store, iterations):
    store.put(ROWS, "".join(map(result, iterations)).encode())
    table = "".join(f"{i},{i}\r\n" for i in iterations)
    store.put(TABLE, f"training_iteration,score\r\n{table}".encode())
    for i in iterations:
        store.put(CHECKPOINT.format(i), json.dumps({"iteration": i}).encode())


def files_of(store):
    return {key: body for key, (body, _) in store._objects.items()}


class Round:
    """An experiment that failed at 3 and was restored to 4."""

    def __init__(self):
        store = MemoryStore()
        errored = make_row(
            "t", status="ERROR", error=True, trial_dir="dir",
            last_result={"training_iteration": 2, "score": 2},
        )  # fmt: skip
        store.put(STATE_NAME, make_state([errored]))
        fill(store, [1, 2])
        self.failed = files_of(store)
        plan = start_night(store)
        finished = make_row("t", trial_dir="dir", last_result={"training_iteration": 4, "score": 4})
        leave_attempt(store, plan, "t", finished)
        beat = {"at": "2026-01-01T00:00:09", "runs_since": "2026-01-01T00:00:01"}
        store.put(layout.heartbeat_key("r1", "t", 1), json.dumps(beat).encode())
        fill(store, [1, 2, 3, 4])
        commit_restore(store, "r1")
        self.store, self.undisturbed = store, files_of(store)
        writes = [Write(CHECKPOINT.format(i), f"sha {i}", i) for i in (3, 4)]
        journal = [{"trial": "t", "pid": 7, "at": at} for at in (1, 2)]
        self.ended = Ended(store, {}, writes, journal)

    def losses(self):
        return find_losses(
            self.failed, self.undisturbed, replace(self.ended, files=files_of(self.store))
        )


@pytest.fixture
def done():
    return Round()


def test_an_undisturbed_restore_has_lost_nothing(done):
    assert done.losses() == []


def rewrite_rows(iterations):
    return lambda done: done.store.put(ROWS, "".join(map(result, iterations)).encode())


def spoil_table(done):
    done.store.put(TABLE, b"training_iteration,score\r\n1,1\r\n2,2\r\n4,4\r\n")


def put_heartbeat(done):
    beat = {"at": "2026-01-01T00:00:12", "runs_since": "2026-01-01T00:00:05"}
    done.store.put(layout.heartbeat_key("r1", "t", 2), json.dumps(beat).encode())


HARM = {
    "a row is lost": rewrite_rows([1, 2, 4]),
    "a row is doubled": rewrite_rows([1, 2, 3, 3, 4]),
    "progress.csv lost a row": spoil_table,
    "a checkpoint is lost": lambda done: done.store.delete(CHECKPOINT.format(3)),
    "an old checkpoint is lost": lambda done: done.store.delete(CHECKPOINT.format(1)),
    "an old checkpoint is changed": lambda done: done.store.put(
        CHECKPOINT.format(1), b'{"iteration": 1 }'
    ),
    "a checkpoint is another's": lambda done: done.store.put(
        CHECKPOINT.format(4), b'{"iteration": 3}'
    ),
    "a checkpoint was overwritten": lambda done: done.ended.writes.append(
        Write(CHECKPOINT.format(4), "another", 9)
    ),
    "the old state is changed": lambda done: done.store.put(STATE_NAME, b"{}"),
    "a state nobody made": lambda done: done.store.put(
        f"{layout.STATE_PREFIX}2026-11-23_10-00-00_r000002.json", done.store.get(STATE_NAME)
    ),
    "the commit was never done": lambda done: done.store.put(
        layout.commit_key("r1"),
        done.store.get(layout.commit_key("r1")).replace(b"true", b"false"),
    ),
    "the lease was never released": lambda done: done.store.delete(layout.lease_release_key(1)),
    "two attempts at once": put_heartbeat,
    "two processes at once": lambda done: done.ended.journal.extend(
        [{"trial": "t", "pid": 8, "at": 1.5}]
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_found(done, harm):
    HARM[harm](done)
    assert done.losses()


def test_an_upload_whose_end_is_asked_for_twice_is_one_write():
    """The answer to the first request is lost when somebody is killed after it."""
    proxy = Proxy("http://127.0.0.1:1")
    with proxy:
        proxy._note("PUT checkpoint_000004/state.json?partNumber=1&uploadId=7", b"five")
        proxy._note("POST checkpoint_000004/state.json?uploadId=7", b"<Complete/>")
        proxy._note("POST checkpoint_000004/state.json?uploadId=7", b"<Complete/>")
    (write,) = proxy.writes
    assert write.sha256 == hashlib.sha256(b"five").hexdigest()
