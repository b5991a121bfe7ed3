"""How many requests a restore sends to S3 as it grows. `benchmarks/scale.py` measures its seconds.

The tasks of a restore run in this process, through a proxy that counts, each at two sizes. What one more
trial or experiment costs is the difference between them.
"""

import json
import math
import re
import uuid
from collections import Counter
from dataclasses import dataclass, field

import pytest

from airflow_tune_restore.protocol import kept_lease, layout, lease
from airflow_tune_restore.restore import undo
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow import steps
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row
from tests.support.finished_runs import finished_runs
from tests.support.storage.counting_proxy import Asked, CountingProxy, state_reads
from tests.support.waiting import eventually

PLAN_PER_TRIAL = 2
"""Its directory is listed with all checkpoints in it, and its seed is written."""

COMMIT_PER_TRIAL = 2
"""Its outcome and its snapshot are read. All records are listed together."""

PLAN_PER_EXPERIMENT = 17
"""With its one resumed trial: 2 listings of its root and 4 of the lease; 2 reads of the state, 1 each of
the searcher and `tuner.pkl`, 2 of the claim; 3 writes for lease and plan; 2 for the trial."""

COMMIT_PER_EXPERIMENT = 19
"""With its one resumed trial: 1 listing of its root, 2 of the lease, 2 of all records; reads of
plan, commit record, ledger, state and callbacks, 2 of the claim; 5 writes for lease, commit record and
state; 2 for the trial."""

CONN_ID = "counted_s3"
_ID = re.compile("[0-9a-f]{16}|t[0-9]{4}|[0-9]{6,}")
_SLACK_BYTES = 512
"""Records hold times and random text, whose lengths differ a little."""


@dataclass
class Night:
    """What the tasks of one restore asked of the store, by step, and the clients that they made."""

    addresses: list[str]
    asked: dict[str, list[Asked]] = field(default_factory=dict)
    clients: dict[str, Counter[str]] = field(default_factory=dict)


class Counted:
    """Runs nights through the proxy."""

    def __init__(self, proxy, server, clients, directory):
        self._proxy, self._server, self._clients = proxy, server, clients
        self._directory = directory
        self._store = open_store(server.url)

    def run(self, name: str, *, experiments: int = 1, trials: int, every: int) -> Night:
        """Restore experiments in which every n-th trial failed, and undo the first commit."""
        at = f"s3://{CONN_ID}@{self._server.bucket}"
        night = Night(
            [f"{at}/{uuid.uuid4().hex[:8]}-{name}-{number}" for number in range(experiments)]
        )
        rows = [_row(number, every) for number in range(trials)]
        local = make_experiment(self._directory / name, rows)
        files = {path.name: path.read_bytes() for path in local.iterdir()}
        for number in range(0, trials, every):
            files[f"dir_t{number:04d}/checkpoint_000001/state.json"] = b"{}"
        state = files.pop(STATE_NAME)
        for address in night.addresses:
            self._put(address, files)
        self._let_a_second_pass(night.addresses[-1])
        for address in night.addresses:
            self._put(address, {STATE_NAME: state})
        plan = self._step(night, "plan", lambda: steps.run_plan(night.addresses))
        self._step(night, "task", lambda: steps.begin_trial(plan["return_value"][0]))
        for item in plan["return_value"]:
            for run in finished_runs(state, [item]):
                self._put(item["experiment"], run)
        commit = self._step(night, "commit", lambda: steps.run_commit(plan["outcomes"]))
        assert len(commit["return_value"]) == experiments
        assert len(plan["return_value"]) == experiments * math.ceil(trials / every)
        assert all(each["state_file"] and not each["failed"] for each in commit["return_value"])
        self._step(night, "undo", lambda: steps.run_undo(night.addresses[0]))
        return night

    def _put(self, address, files):
        """Write what the tasks under test do not write."""
        for key, body in files.items():
            self._store.put(f"{address.rpartition('/')[2]}/{key}", body)

    def _let_a_second_pass(self, address):
        """A driver writes tuner.pkl long before its last state; then it is read less often."""
        entries = self._store.list_dir(address.rpartition("/")[2])
        (written,) = (entry.modified_at for entry in entries if entry.name == layout.TUNER_FILE)
        eventually(lambda: self._store.now() > written)

    def _step(self, night, step, take):
        self._proxy.take()
        self._clients.clear()
        pushed = take()
        night.asked[step] = self._proxy.take()
        night.clients[step] = Counter(self._clients)
        return pushed


def _row(number: int, every: int) -> list[str]:
    has_failed = number % every == 0
    return make_row(
        f"t{number:04d}",
        status="ERROR" if has_failed else "TERMINATED",
        error=has_failed,
        checkpoint=has_failed,
        last_result={"training_iteration": 2},
        last_result_time=1000.0 + number,
    )


@pytest.fixture(scope="module")
def counted(s3, tmp_path_factory):
    clients: Counter[str] = Counter()
    with CountingProxy(s3.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        connection = json.loads(s3.airflow_connection)
        connection["extra"]["endpoint_url"] = proxy.endpoint
        patch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(connection))
        # a slow machine would renew leases meanwhile, and an undo would wait until the lease has rested
        patch.setattr(lease, "RENEW_SECONDS", math.inf)
        patch.setattr(kept_lease, "FRESH_SECONDS", math.inf)
        patch.setattr(undo, "let_rest", lambda _store: None)
        _count_clients(patch, clients)
        yield Counted(proxy, s3, clients, tmp_path_factory.mktemp("counted"))


def _count_clients(patch, clients):
    """Count the clients that are made, each of which has connections of its own."""
    import obstore.store
    from aiobotocore.session import AioSession

    of_botocore, of_obstore = AioSession.create_client, obstore.store.S3Store

    def create_client(self, service_name, *args, **kwargs):
        clients[f"aiobotocore, {service_name}"] += 1
        return of_botocore(self, service_name, *args, **kwargs)

    def make_store(*args, **kwargs):
        clients["obstore"] += 1
        return of_obstore(*args, **kwargs)

    patch.setattr(AioSession, "create_client", create_client)
    patch.setattr(obstore.store, "S3Store", make_store)


@pytest.fixture(scope="module")
def by_trials(counted):
    """One experiment of 8 trials, and one of 24; half of them failed."""
    return [counted.run(f"trials-{n:02d}", trials=n, every=2) for n in (8, 24)]


@pytest.fixture(scope="module")
def by_experiments(counted):
    """Two experiments, and six; one of three trials failed in each."""
    return [counted.run(f"of-{n}", experiments=n, trials=3, every=3) for n in (2, 6)]


def kinds(asked: list[Asked]) -> Counter[str]:
    """Return how often each kind of object was asked for, without the ids in its key."""
    keys = (one.key.partition("/")[2] for one in asked)
    names = (_ID.sub("*", key) for key in keys)
    return Counter(f"{one.verb} {name}" for one, name in zip(asked, names, strict=True))


@pytest.mark.parametrize(("step", "most"), [("plan", PLAN_PER_TRIAL), ("commit", COMMIT_PER_TRIAL)])
def test_one_more_resumed_trial(by_trials, step, most):
    few, many = (night.asked[step] for night in by_trials)
    assert (len(many) - len(few)) / 8 <= most, kinds(many) - kinds(few)


@pytest.mark.parametrize(
    ("step", "most"), [("plan", PLAN_PER_EXPERIMENT), ("commit", COMMIT_PER_EXPERIMENT)]
)
def test_one_more_experiment(by_experiments, step, most):
    few, many = (night.asked[step] for night in by_experiments)
    assert (len(many) - len(few)) / 4 <= most, kinds(many) - kinds(few)


@pytest.mark.parametrize(("step", "times"), [("plan", 2), ("commit", 1), ("undo", 1)])
def test_a_state_is_read_once(by_trials, by_experiments, step, times):
    """The plan task reads it to plan, and once more for its SHA-256 under the lease."""
    for night in (*by_trials, *by_experiments):
        reads = state_reads(night.asked[step])
        assert reads
        assert max(reads.values()) <= times, reads


def test_the_task_of_a_trial_reads_the_same_however_many_trials_there_are(by_trials):
    few, many = (night.asked["task"] for night in by_trials)
    assert kinds(many) == kinds(few)
    assert abs(sum(one.size for one in many) - sum(one.size for one in few)) < _SLACK_BYTES


@pytest.mark.parametrize("step", ["plan", "task", "commit", "undo"])
def test_a_task_makes_one_client_of_a_kind_per_bucket(by_trials, by_experiments, step):
    for night in (*by_trials, *by_experiments):
        assert night.clients[step]
        assert max(night.clients[step].values()) == 1, night.clients[step]
