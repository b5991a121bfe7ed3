"""A runner shows that it is alive, and stops for newer attempts and restores."""

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from airflow_tune_restore.exceptions import LeaseLostError, StorageError
from airflow_tune_restore.protocol import layout, lease, lease_objects
from airflow_tune_restore.protocol.request import EXIT_FENCED, RunnerRequest
from airflow_tune_restore.runner.heartbeat import BEAT_SECONDS, FencedError, Heartbeat
from airflow_tune_restore.storage.fs import open_store
from tests.support.waiting import PATIENCE_SECONDS, eventually, set_time

REQUEST = RunnerRequest(
    experiment="", restore_id="r", trial_id="t", attempt=1, trainable="", trainable_name="",
    action="resume",
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path.as_posix())
    lease.acquire(store, restore_id="r", holder="test")
    store.create(layout.request_key("r", "t", 1), REQUEST.to_json())
    return store


def heartbeat(store) -> Heartbeat:
    return Heartbeat(store, REQUEST, None)


def test_it_beats_and_renews_the_lease(store):
    before = store.list_dir(layout.LEASE)
    pulse = heartbeat(store)
    pulse.start()
    pulse.stop()
    first = store.get(layout.heartbeat_key("r", "t", 1))
    pulse.beat()
    assert store.get(layout.heartbeat_key("r", "t", 1)) != first
    assert store.list_dir(layout.LEASE) != before


def test_an_attempt_that_starts_after_a_newer_one_was_claimed_writes_nothing(store):
    store.create(layout.request_key("r", "t", 2), b"{}")
    with pytest.raises(FencedError, match="attempt 2 has been started"):
        start_and_expect_no_write(store)


def test_an_attempt_that_starts_after_the_commit_has_begun_writes_nothing(store):
    store.create(layout.commit_key("r"), b"{}")
    with pytest.raises(FencedError, match="the commit of its restore has begun"):
        start_and_expect_no_write(store)


def test_an_attempt_that_starts_after_its_restore_ended_writes_nothing(store):
    lease.release(store, lease.check_held(store, "r"))
    with pytest.raises(LeaseLostError):
        start_and_expect_no_write(store)


def start_and_expect_no_write(store):
    before = {key: store.get(key) for key in everything(store)}
    try:
        heartbeat(store).start()
    finally:
        assert {key: store.get(key) for key in everything(store)} == before


def everything(store, directory=""):
    for entry in store.list_dir(directory):
        path = f"{directory}/{entry.name}".lstrip("/")
        if entry.is_dir:
            yield from everything(store, path)
        else:
            yield path


def test_a_newer_attempt_claimed_during_the_first_check_sees_the_heartbeat_or_is_seen(
    store, monkeypatch
):
    """The claim comes after the first list: then the heartbeat is written, and a second list follows."""
    create = store.create

    def claim_and_create(key, body):
        create(layout.request_key("r", "t", 2), b"{}")
        create(key, body)

    monkeypatch.setattr(store, "create", claim_and_create)
    with pytest.raises(FencedError, match="attempt 2 has been started"):
        heartbeat(store).start()
    assert store.get(layout.heartbeat_key("r", "t", 1))


def test_a_second_runner_of_the_same_attempt_ends_at_once(store):
    pulse = heartbeat(store)
    pulse.start()
    try:
        with pytest.raises(FencedError, match="another runner of the same attempt has started"):
            heartbeat(store).start()
    finally:
        pulse.stop()


def test_a_lost_lease_ends_it(store):
    lease.release(store, lease.check_held(store, "r"))
    with pytest.raises(LeaseLostError):
        heartbeat(store).start()


def test_a_lease_that_its_restore_lost_and_took_again_ends_it(store):
    pulse = heartbeat(store)
    pulse.check()
    for restore_id in ("another", "r"):
        lease.release(store, lease.check_held(store, lease_holder(store)))
        lease.acquire(store, restore_id=restore_id, holder="test")
    with pytest.raises(LeaseLostError, match="epoch 3 is not 1"):
        pulse.check()


def lease_holder(store):
    return lease_objects.newest_claim(store, store.list_dir(layout.LEASE)).restore_id


@pytest.mark.parametrize("lost", ["attempt", "lease", "commit"])
def test_while_running_it_leaves_without_another_word(store, lost, monkeypatch):
    pulse = heartbeat(store)
    pulse.start()
    pulse.stop()
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    if lost == "attempt":
        store.create(layout.request_key("r", "t", 2), b"{}")
    elif lost == "commit":
        store.create(layout.commit_key("r"), b"{}")
    else:
        lease.release(store, lease.check_held(store, "r"))
    pulse.check_or_end()
    assert codes == [3]


def test_a_runner_that_was_frozen_in_a_look_looks_again_before_it_writes(store, monkeypatch):
    class ProcessEnds(BaseException):
        pass

    def end(_code):
        raise ProcessEnds

    def freeze(*of):
        renew(*of)
        store.create(layout.request_key("r", "t", 2), b"{}")  # it was taken for dead meanwhile
        clock["now"] += 1250

    pulse, clock, renew = heartbeat(store), {"now": 1000.0}, lease.renew
    monkeypatch.setattr("os._exit", end)
    set_time(monkeypatch, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(lease, "renew", freeze)
    with pytest.raises(ProcessEnds):
        pulse.check_lately_or_end()


def test_a_runner_that_was_frozen_in_its_first_look_is_overdue(store, monkeypatch):
    clock, renew, codes = {"now": 1000.0}, lease.renew, []

    def freeze(*of):
        renew(*of)
        clock["now"] += 1250

    pulse = heartbeat(store)
    monkeypatch.setattr("os._exit", codes.append)
    set_time(monkeypatch, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(lease, "renew", freeze)
    monkeypatch.setattr(pulse, "_threads", [])
    pulse.start()
    pulse._end_if_overdue()
    assert codes == [EXIT_FENCED]


def test_a_parent_that_is_gone_is_a_request_to_stop(store, monkeypatch):
    sent = []
    monkeypatch.setattr("os.kill", lambda _pid, number: sent.append(number))
    pulse = Heartbeat(store, REQUEST, parent_pid=os.getpid())
    pulse._watch_parent()
    pulse._watch_parent()
    assert sent == [15]


@pytest.mark.parametrize(("ttl_seconds", "seconds"), [(0.4, 0.1), (8, 2), (20, 5), (3600, 5)])
def test_it_beats_four_times_in_a_short_lease_and_every_five_seconds_in_a_long_one(
    tmp_path, monkeypatch, ttl_seconds, seconds
):
    """Both threads wait for so long: the one that beats, and the one that watches over it."""
    store = open_store(tmp_path.as_posix())
    lease.acquire(store, restore_id="r", holder="test", ttl_seconds=ttl_seconds)
    pulse = heartbeat(store)
    pulse.check()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        return True  # stopped meanwhile

    monkeypatch.setattr(pulse._stopped, "wait", wait)
    pulse._run()
    pulse._watch()
    assert waits == [seconds, seconds]


def test_once_started_it_beats_and_looks_for_its_parent_by_itself(store, monkeypatch):
    sent = []
    monkeypatch.setattr("os.kill", lambda _pid, number: sent.append(number))
    monkeypatch.setattr("airflow_tune_restore.runner.heartbeat.BEAT_SECONDS", 0.01)
    pulse = Heartbeat(
        store, REQUEST, parent_pid=os.getpid()
    )  # not our parent: as if ours were gone
    # a starved thread may miss the end of its lease, which is not what this is about
    monkeypatch.setattr(pulse, "_end_if_overdue", lambda: None)
    pulse.start()
    eventually(lambda: beat(store)["count"] >= 4 and sent)
    pulse.stop()
    assert sent == [signal.SIGTERM]


def test_it_stops_itself_at_two_thirds_of_the_ttl_without_another_write(store, monkeypatch):
    """As after SIGSTOP: the thread wakes, and its last success was long ago."""
    ended = []

    def end(code):
        ended.append(code)
        raise SystemExit  # the thread ends as the process would

    monkeypatch.setattr("os._exit", end)
    pulse = heartbeat(store)
    pulse.beat()
    pulse.check()
    before = {name: store.get(name) for name in written(store)}
    woken = pulse._last_success + lease_objects.DEFAULT_TTL_SECONDS * 2 / 3 + 1
    monkeypatch.setattr("airflow_tune_restore.runner.heartbeat.time.monotonic", lambda: woken)
    monkeypatch.setattr(pulse._stopped, "wait", lambda _seconds: False)
    with pytest.raises(SystemExit):
        pulse._run()
    assert ended == [3]
    assert {name: store.get(name) for name in written(store)} == before


def test_a_store_that_fails_for_a_while_is_survived_and_for_too_long_is_not(store, monkeypatch):
    ended = []

    def end(code):
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr("os._exit", end)
    pulse = heartbeat(store)
    pulse.beat()
    pulse.check()

    def refuse(_key, _body):
        raise StorageError("the store does not answer")

    monkeypatch.setattr(store, "put", refuse)
    pulse._last_success = 0.0
    clock = {"now": 0.0, "beats": 0}

    def wait(_seconds):
        clock["now"] += 5
        clock["beats"] += 1
        return False

    monkeypatch.setattr(
        "airflow_tune_restore.runner.heartbeat.time.monotonic", lambda: clock["now"]
    )
    monkeypatch.setattr(pulse._stopped, "wait", wait)
    with pytest.raises(SystemExit):
        pulse._run()
    assert ended == [3]
    assert (
        lease_objects.DEFAULT_TTL_SECONDS * 2 / 3
        < clock["now"]
        <= lease_objects.DEFAULT_TTL_SECONDS * 2 / 3 + 5
    )


def test_a_store_that_keeps_it_waiting_does_not_keep_it_from_ending(store, monkeypatch):
    """While one thread waits for its beat to be written, another notices that it is late."""
    codes, signals, clock = [], [], {"now": 0.0}
    is_beating, answered = threading.Event(), threading.Event()

    def beat_for_ever():
        is_beating.set()
        assert answered.wait(PATIENCE_SECONDS)

    def end(code):
        codes.append(code)
        raise SystemExit  # the thread ends as the process would

    def wait(seconds):
        if threading.current_thread() is not beating:  # only the watching one moves the clock on
            clock["now"] += seconds
        return answered.is_set()

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr("os.kill", lambda _pid, number: signals.append(number))
    monkeypatch.setattr(
        "airflow_tune_restore.runner.heartbeat.time",
        SimpleNamespace(monotonic=lambda: clock["now"]),
    )
    pulse = Heartbeat(
        store, REQUEST, parent_pid=os.getpid()
    )  # not our parent: as if ours were gone
    pulse.check()
    monkeypatch.setattr(pulse, "beat", beat_for_ever)
    monkeypatch.setattr(pulse._stopped, "wait", wait)
    beating = threading.Thread(target=pulse._run)
    beating.start()
    try:
        assert is_beating.wait(PATIENCE_SECONDS)
        with pytest.raises(SystemExit):
            pulse._watch()
    finally:
        answered.set()
        beating.join()
    assert codes == [EXIT_FENCED]
    assert signals == [signal.SIGTERM]
    two_thirds = lease_objects.DEFAULT_TTL_SECONDS * 2 / 3
    assert two_thirds < clock["now"] <= two_thirds + BEAT_SECONDS


DRIVER = replace(REQUEST, trial_id=layout.SHARED_DRIVER, action="run")


@pytest.fixture
def driver(store):
    """The heartbeat of a shared driver that runs trial t."""
    pulse = Heartbeat(store, DRIVER, None)
    pulse.join(REQUEST)
    return pulse


@pytest.fixture
def codes(monkeypatch):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    return codes


def test_a_shared_driver_beats_for_each_attempt_until_this_has_its_outcome(store, driver):
    driver.join(replace(REQUEST, trial_id="u"))
    driver.beat()
    assert [beat(store, unit)["count"] for unit in ("t", "u", layout.SHARED_DRIVER)] == [2, 2, 1]
    with driver.leaving(REQUEST):
        driver.beat()  # a slow store may take a minute to write the outcome
    driver.beat()
    assert [beat(store, unit)["count"] for unit in ("t", "u", layout.SHARED_DRIVER)] == [3, 4, 3]


def test_an_attempt_whose_outcome_could_not_be_written_goes_on_beating(store, driver):
    with pytest.raises(StorageError), driver.leaving(REQUEST):
        raise StorageError("the store does not answer")
    driver.beat()
    assert beat(store)["count"] == 2


def test_a_newer_attempt_of_one_trial_ends_the_whole_driver(store, driver, codes, caplog):
    store.create(layout.request_key("r", "t", 2), b"{}")
    driver.check_or_end()
    assert codes == [EXIT_FENCED]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_newer_attempt_that_follows_an_outcome_does_not(store, driver, codes):
    with driver.leaving(REQUEST):
        pass
    store.create(layout.request_key("r", "t", 2), b"{}")
    driver.check_or_end()
    assert codes == []


def test_nor_does_one_that_is_seen_while_its_predecessor_leaves(store, driver, codes, monkeypatch):
    listed = store.list_dir

    def leave_first(directory=""):
        if directory == layout.attempts_dir("r", "t"):
            with driver.leaving(REQUEST):
                store.create(layout.request_key("r", "t", 2), b"{}")
        return listed(directory)

    monkeypatch.setattr(store, "list_dir", leave_first)
    driver.check_or_end()
    assert codes == []


def test_a_first_heartbeat_whose_answer_was_lost_is_its_own(store, driver, monkeypatch):
    created = store.create

    def lose_answer(key, body):
        monkeypatch.setattr(store, "create", created)
        created(key, body)
        raise StorageError("the answer was lost")

    monkeypatch.setattr(store, "create", lose_answer)
    other = replace(REQUEST, trial_id="u")
    with pytest.raises(StorageError):
        driver.join(other)
    with pytest.raises(FencedError, match="another runner"):
        Heartbeat(store, DRIVER, None).join(other)
    driver.join(other)
    driver.beat()
    assert beat(store, "u")["count"] == 3


def test_after_it_took_a_trial_it_looks_for_a_commit_before_it_writes(store, driver, monkeypatch):
    """The commit may have begun since the last look, and have found no runner of this trial."""
    monkeypatch.setattr("os._exit", sys.exit)
    driver.check_or_end()
    driver.check_lately_or_end()
    store.create(layout.commit_key("r"), b"{}")
    driver.check_lately_or_end()  # it looked just now
    driver.join(replace(REQUEST, trial_id="u"))
    with pytest.raises(SystemExit):
        driver.check_lately_or_end()


@pytest.mark.parametrize("is_at_work", [True, False])
def test_a_driver_without_work_takes_the_commit_as_its_end(
    store, driver, codes, caplog, is_at_work
):
    if not is_at_work:
        with driver.leaving(REQUEST):
            pass
    store.create(layout.commit_key("r"), b"{}")
    caplog.set_level("INFO")
    driver.check_or_end()
    assert codes == [EXIT_FENCED]
    assert [record.levelname for record in caplog.records] == ["ERROR" if is_at_work else "INFO"]


def beat(store, unit="t"):
    return json.loads(store.get(layout.heartbeat_key("r", unit, 1)))


def written(store):
    keys = [f"{layout.LEASE}/{entry.name}" for entry in store.list_dir(layout.LEASE)]
    return [*keys, layout.heartbeat_key("r", "t", 1)]
