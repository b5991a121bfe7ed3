"""In whatever order requests are answered, and however many are in flight, the same bytes are written."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage import in_flight
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt, start_night

ENDS = ("finished", "failed", "interrupted", "failed twice", "finished at last", "nothing", "kept")
ID = "r1"


class Scrambled(MemoryStore):
    """A store that lists in any order, and whose other answers take any time."""

    dice = random.Random(0)

    def walk(self, path=""):
        entries = list(super().walk(path))
        self.dice.shuffle(entries)
        return iter(entries)

    def get(self, key, *, max_bytes=None):
        time.sleep(self.dice.random() / 1000)
        return super().get(key, max_bytes=max_bytes)

    def put(self, key, body):
        time.sleep(self.dice.random() / 1000)
        super().put(key, body)

    def at(self, path):
        return Scrambled(self._objects, root=f"{self._root}{path}/", clock=self._clock)


def rows_of(ends):
    return [
        make_row(
            f"t{number:02}",
            status="TERMINATED" if end == "kept" else "ERROR",
            last_result={"training_iteration": number},
            last_result_time=float(number),
        )
        for number, end in enumerate(ends)
    ]


def run_trials(store, ends):
    plan = read_plan(store, ID)
    for number, end in enumerate(ends):
        trial_id = f"t{number:02}"
        match end:
            case "finished" | "failed" | "interrupted":
                leave_attempt(store, plan, trial_id, result=end)
            case "failed twice":
                leave_attempt(store, plan, trial_id, result="failed")
                leave_attempt(store, plan, trial_id, result="failed", iteration=4)
            case "finished at last":
                leave_attempt(store, plan, trial_id, result="interrupted")
                leave_attempt(store, plan, trial_id, iteration=6)


def written(objects):
    """All objects but those of leases and requests, which hold random numbers."""
    return {
        key: body
        for key, (body, _) in objects.items()
        if layout.LEASE not in key and not key.endswith("request.json")
    }


def restored(kind, objects, experiments, threads):
    """Start and commit the restores of several experiments, and return all that was written."""
    objects = dict(objects)
    with mock.patch.object(in_flight, "IN_FLIGHT", threads), ThreadPoolExecutor(threads) as pool:
        store = kind(objects)
        flags = ResumeFlags.from_flags(resume_errored=True)
        stores = [store.at(f"e{number}") for number in range(len(experiments))]
        list(pool.map(lambda each: start_night(each, ID, flags=flags), stores))
        for each, ends in zip(stores, experiments, strict=True):
            run_trials(each, ends)
        list(pool.map(lambda each: commit_restore(each, ID), stores))
    return written(objects)


@settings(max_examples=25)
@given(
    experiments=st.lists(
        st.lists(st.sampled_from(ENDS), min_size=1, max_size=9).filter(
            lambda ends: set(ends) != {"kept"}
        ),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 10**6),
    threads=st.sampled_from([2, 5, 32]),
)
def test_the_committed_bytes_are_the_same(experiments, seed, threads):
    objects = {}
    for number, ends in enumerate(experiments):
        MemoryStore(objects).put(f"e{number}/{STATE_NAME}", make_state(rows_of(ends)))
    Scrambled.dice = random.Random(seed)
    one_by_one = restored(MemoryStore, objects, experiments, threads=1)
    assert restored(Scrambled, objects, experiments, threads) == one_by_one
