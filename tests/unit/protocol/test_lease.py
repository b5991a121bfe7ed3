"""One restore at a time: taken, re-entered, refused, taken over, released."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import LeaseHeldError, LeaseLostError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.lease_objects import DagRunId, HolderStatus
from airflow_tune_restore.protocol.lease_watch import KNOWN_DEAD_SECONDS
from airflow_tune_restore.storage.memory import MemoryStore


class Time:
    """A store clock and a monotonic clock that only move when told to, or slept on."""

    def __init__(self):
        self.seconds = 0.0
        self.while_asleep = lambda: None

    def now(self):
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds
        self.while_asleep()


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def store(time):
    return MemoryStore(clock=time.now)


def take(store, time, restore_id, ttl=60.0):
    return lease.acquire(
        store,
        restore_id=restore_id,
        holder=f"holder of {restore_id}",
        ttl_seconds=ttl,
        clock=time,
    )


def test_the_first_takes_it_and_the_second_is_told_who_has_it(store, time):
    take(store, time, "one")
    time.seconds = 7
    with pytest.raises(LeaseHeldError) as caught:
        take(store, time, "two")
    assert "holder of one" in str(caught.value)
    assert "last heartbeat 7 s ago" in str(caught.value)
    assert time.seconds == 7  # it did not wait


def test_the_same_restore_enters_again_and_counts_as_alive(store, time):
    first = take(store, time, "one")
    time.seconds = 50
    assert take(store, time, "one") == first
    time.seconds = 100
    with pytest.raises(LeaseHeldError):
        take(store, time, "two")


def test_a_released_lease_is_free_at_once(store, time):
    lease.release(store, take(store, time, "one"))
    assert take(store, time, "two").epoch == 2
    with pytest.raises(LeaseLostError, match="holder of two"):
        lease.check_held(store, "one")


def test_a_silent_holder_is_watched_for_its_ttl_and_then_replaced(store, time, caplog):
    take(store, time, "one", ttl=60)
    time.seconds = 1000
    assert take(store, time, "two").epoch == 2
    assert time.seconds >= 1060
    assert "Restore one of" in caplog.text
    assert (
        "It is watched for 60 s. If it stays silent, its lease is taken over then." in caplog.text
    )
    with pytest.raises(LeaseLostError):
        lease.check_held(store, "one")


def test_a_holder_that_stirs_while_watched_keeps_it(store, time):
    held = take(store, time, "one", ttl=60)
    time.seconds = 1000

    def stir():
        if time.seconds > 1030:
            lease.renew(store, held)

    time.while_asleep = stir
    with pytest.raises(LeaseHeldError):
        take(store, time, "two")


def test_a_released_lease_is_no_longer_held_by_its_own_restore(store, time):
    lease.release(store, take(store, time, "one"))
    with pytest.raises(LeaseLostError, match="ended"):
        lease.check_held(store, "one")


@given(
    pauses=st.lists(st.floats(0.1, 40.0), max_size=30),  # 40 s: two thirds of the TTL
    looks=st.lists(st.floats(0.0, 300.0), max_size=5),
)
def test_a_holder_that_renews_in_time_is_never_replaced(pauses, looks):
    """Whenever others look, and however long they watch: it stops itself before they take over."""
    time = Time()
    store = MemoryStore(clock=time.now)
    held = take(store, time, "one", ttl=60)
    due, moments = [], 0.0
    for pause in pauses:
        moments += pause
        due.append(moments)
    ends = moments + 40.0  # after its last beat it must have stopped

    def live():
        while due and due[0] <= time.seconds:
            due.pop(0)
            lease.renew(store, held)

    time.while_asleep = live
    for look in sorted(looks):
        time.seconds = max(time.seconds, look)
        live()
        try:
            take(store, time, "two")
        except LeaseHeldError:
            continue
        assert time.seconds >= ends
        return


def test_the_watchers_of_a_dead_holder_are_one_heir_and_refusals(time, store):
    take(store, time, "dead", ttl=60)
    time.seconds = 1000
    heirs = []

    def another():
        time.while_asleep = lambda: None
        heirs.append(take(store, time, "two"))

    time.while_asleep = another  # while the third watches, the second does, too, and is faster
    with pytest.raises(LeaseHeldError, match="holder of two"):
        take(store, time, "three")
    assert [heir.epoch for heir in heirs] == [2]


@given(
    steps=st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["take", "release", "wait"])))
)
def test_never_do_two_restores_hold_it(steps):
    time = Time()
    store = MemoryStore(clock=time.now)
    held = {}
    for who, step in steps:
        if step == "wait":
            time.seconds += 45
        elif step == "release" and who in held:
            lease.release(store, held.pop(who))
        elif step == "take":
            try:
                held[who] = take(store, time, who)
            except LeaseHeldError:
                continue
        holders = [name for name in "ABC" if _holds(store, name)]
        assert len(holders) <= 1


def _holds(store, restore_id):
    try:
        lease.check_held(store, restore_id)
    except LeaseLostError:
        return False
    return True


# --- a holder that is known to have ended


def watch(store, time, **answer):
    """Return the first look at the holder for another restore, after someone was asked about it."""
    return lease.refuse_if_alive(
        store,
        "two",
        ask_holder=lambda _status: HolderStatus(**answer),
        clock=time,
    )


def take_over(store, time, **options):
    return lease.acquire(
        store,
        restore_id="two",
        holder="holder of two",
        watch=watch(store, time, has_ended=True, found="Its DAG run is failed"),
        clock=time,
        **options,
    )


def test_a_holder_that_is_known_to_have_ended_is_watched_for_a_short_time_alone(store, time):
    take(store, time, "one", ttl=900)
    time.seconds = 5
    with pytest.raises(LeaseHeldError, match="Its DAG run is running"):
        watch(store, time, has_ended=False, found="Its DAG run is running")
    assert take_over(store, time).epoch == 2
    assert 5 + KNOWN_DEAD_SECONDS <= time.seconds < 5 + KNOWN_DEAD_SECONDS + 2


def test_a_short_ttl_is_not_made_longer_by_knowing_more(store, time):
    take(store, time, "one", ttl=6)
    assert take_over(store, time).epoch == 2
    assert time.seconds < 8


@pytest.mark.parametrize(
    "key",
    [
        layout.lease_heartbeat_key(1),
        layout.heartbeat_key("one", "a1", 1),
        layout.heartbeat_key("one", layout.WHOLE_EXPERIMENT, 2),
    ],
)
def test_a_heartbeat_that_moves_keeps_the_lease_of_a_holder_that_was_taken_for_dead(
    store, time, key
):
    take(store, time, "one", ttl=900)
    store.put(key, b"1")
    time.while_asleep = lambda: store.put(key, b"2")
    with pytest.raises(LeaseHeldError, match="It lives: it wrote while it was watched"):
        take_over(store, time)
    assert lease.check_held(store, "one").epoch == 1


def test_a_wait_is_shown_once_and_counted_down(store, time):
    take(store, time, "one", ttl=60)
    time.seconds = 1000
    begun, left = [], []

    def on_wait(begin):
        begun.append(begin.describe())
        return left.append

    take_over(store, time, on_wait=on_wait)
    (text,) = begun
    assert text == (
        "Restore one of holder of one did not release the lease of memory:. It took the lease at "
        "2026-01-01 00:00:00 UTC. Its last sign of life was at 2026-01-01 00:00:00 UTC. Its DAG run is "
        "failed. It is watched for 30 s. If it stays silent, its lease is taken over then."
    )
    assert left == [*range(30, 0, -1), 0]


# --- the DAG run in a claim

RUN = DagRunId(
    dag_id="nightly",
    run_id="scheduled__2026-01-01T00:00:00+00:00",
    started_at="2026-01-01T00:00:01",
)


def test_a_claim_holds_the_dag_run_that_made_it(store):
    taken = lease.acquire(store, restore_id="one", holder="a DAG run", dag_run=RUN)
    assert taken.dag_run == RUN
    assert lease.check_held(store, "one") == taken


@pytest.mark.parametrize(
    "dag_run",
    [
        None, 7, "nightly", [], {},
        {"dag_id": "nightly"},
        {"dag_id": "nightly", "run_id": 7, "started_at": "2026-01-01T00:00:01"},
        # Airflow's client puts the ids into a path as they are
        {"dag_id": "..", "run_id": "connections", "started_at": "2026-01-01T00:00:01"},
        {"dag_id": "nightly", "run_id": "../../variables/secret", "started_at": "2026-01-01T00:00:01"},
        {"dag_id": "nightly?", "run_id": "1", "started_at": "2026-01-01T00:00:01"},
        {"dag_id": "a" * 251, "run_id": "1", "started_at": "2026-01-01T00:00:01"},
        {"dag_id": "", "run_id": "1", "started_at": "2026-01-01T00:00:01"},
    ],
)  # fmt: skip
def test_a_claim_whose_dag_run_makes_no_sense_holds_the_lease_without_one(store, dag_run):
    claim = {"restore_id": "one", "holder": "somebody", "ttl_seconds": 60, "dag_run": dag_run}
    store.put(layout.lease_claim_key(1), json.dumps(claim).encode())
    held = lease.check_held(store, "one")
    assert (held.holder, held.dag_run) == ("somebody", None)


@pytest.mark.parametrize("shown", ["heartbeat", "release", "dag_run"])
def test_a_claim_made_while_the_lease_is_listed_is_not_passed_over(store, time, monkeypatch, shown):
    """A listing may show a later object and not an earlier one, if both are written meanwhile."""
    lease.renew(store, take(store, time, "one"))
    if shown != "heartbeat":
        store.put(f"{layout.LEASE}/00000001.{shown}.json", b"{}")
    whole, torn = store.list_dir, [f"00000001.{shown}.json"]

    def list_dir(path=""):
        entries = whole(path)
        shown_now = torn.pop() if torn else None
        return [entry for entry in entries if shown_now in (None, entry.name)]

    monkeypatch.setattr(store, "list_dir", list_dir)
    if shown == "release":
        assert take(store, time, "two").epoch == 2
    else:
        with pytest.raises(LeaseHeldError):
            take(store, time, "two")
    assert torn == []
