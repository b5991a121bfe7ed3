"""The trigger of an asset's watcher: what it reports, remembers and survives."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from airflow.sdk import Asset, AssetWatcher
from airflow.sdk.module_loading import import_string
from airflow.triggers.base import BaseEventTrigger

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.scan_filter import ScanFilter
from airflow_tune_restore.triggers import experiment_poller, failed_experiment
from airflow_tune_restore.triggers.experiment_poller import Poll
from airflow_tune_restore.triggers.experiment_sensor import ExperimentSensorTrigger
from airflow_tune_restore.triggers.failed_experiment import FailedTuneExperimentTrigger
from tests.support.experiments.built import make_report
from tests.support.waiting import PATIENCE_SECONDS

DEAD = make_report("dead", Health.INTERRUPTED)


class Memory:
    """Stands in for Airflow's state store of an asset."""

    def __init__(self, *, fails_to_read=0, fails_to_write=0):
        self.kept = {}
        self.fails_to_read = fails_to_read
        self.fails_to_write = fails_to_write

    async def aget(self, key, default=None):
        if self.fails_to_read:
            self.fails_to_read -= 1
            raise RuntimeError("no API server")
        return json.loads(self.kept[key]) if key in self.kept else default

    async def aset(self, key, value):
        if self.fails_to_write:
            self.fails_to_write -= 1
            raise RuntimeError("no API server")
        self.kept[key] = json.dumps(value)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(failed_experiment, "SETTLED_SECONDS", 0)
    waits = [0] * len(failed_experiment.RECALL_WAITS_SECONDS)
    monkeypatch.setattr(failed_experiment, "RECALL_WAITS_SECONDS", waits)


def reported(*polls, memory=None, prefix="/sweeps", **arguments) -> list[list[str]]:
    """Return the experiments of each event that these polls make."""
    trigger = FailedTuneExperimentTrigger(prefix=prefix, **arguments)
    trigger.asset_state_store = memory

    async def stream():
        for poll in polls:
            yield Poll(tuple(poll)) if not isinstance(poll, str) else Poll(refusal=poll)

    async def collect():
        return [event.payload async for event in trigger.filter_shared_stream(stream())]

    return [event["experiments"] for event in asyncio.run(collect())]


def test_it_is_what_a_watcher_takes_and_its_wire_form_makes_an_equal_one():
    trigger = FailedTuneExperimentTrigger(
        prefix="s3://bucket/a", storage_conn_id="minio", stale_after=60, include=["x"]
    )
    assert isinstance(trigger, BaseEventTrigger)
    Asset("a", watchers=[AssetWatcher(name="w", trigger=trigger)])
    path, arguments = trigger.serialize()
    assert path == ("airflow_tune_restore.triggers.failed_experiment.FailedTuneExperimentTrigger")
    assert arguments["prefix"] == "s3://minio@bucket/a"
    assert import_string(path)(**arguments).serialize() == (path, arguments)


def test_one_pattern_may_stand_alone_as_it_may_in_the_sensor():
    trigger = FailedTuneExperimentTrigger(prefix="/a", include="lr-*", exclude="tmp*")
    assert trigger.search.selection == ScanFilter(include=("lr-*",), exclude=("tmp*",))


@pytest.mark.parametrize(
    "arguments",
    [
        {"prefix": ""},
        {"prefix": "{{ var.value.prefix }}"},
        {"prefix": "/a", "poke_interval": -5},
        {"prefix": "/a", "poke_interval": "nan"},
        {"prefix": "/a", "include": [1]},
        {"prefix": "/a", "max_depth": -1},
        {"prefix": "/a "},
    ],
)
def test_what_makes_no_sense_is_refused_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidInputError):
        FailedTuneExperimentTrigger(**arguments)


def test_nothing_is_reported_twice_while_it_is_unchanged():
    lives = make_report("dead", Health.RUNNING)  # a restore was at work on it, and came to nothing
    blind = make_report("dead", Health.UNREADABLE)
    above = make_report("", Health.UNREADABLE)
    gone: list = []
    for meanwhile in ([DEAD], [lives], [blind], [above], gone):
        assert reported([DEAD], meanwhile, [DEAD]) == [["/sweeps/dead"]]


def test_one_event_a_poll_whatever_was_found():
    assert reported([DEAD, make_report("b")], [DEAD, make_report("b"), make_report("c")]) == [
        ["/sweeps/dead", "/sweeps/b"],
        ["/sweeps/c"],
    ]


def test_a_change_is_reported_and_so_is_who_died_again():
    newer = make_report("dead", Health.INTERRUPTED, state_file="experiment_state-y.json")
    assert len(reported([DEAD], [newer], [newer])) == 2
    lives = make_report("dead", Health.RUNNING)
    again = replace(DEAD, last_write=datetime(2026, 11, 25, 3, tzinfo=UTC))
    assert len(reported([DEAD], [lives], [again])) == 2


def test_only_what_is_asked_for_is_reported():
    assert reported([DEAD, make_report("b", Health.FINISHED)], health={"finished"}) == [
        ["/sweeps/b"]
    ]


def test_what_was_reported_is_remembered_by_the_next_triggerer():
    memory = Memory()
    assert len(reported([DEAD], memory=memory)) == 1
    assert reported([DEAD], memory=memory) == []
    assert reported([DEAD, make_report("b")], memory=memory) == [["/sweeps/b"]]


def test_a_memory_that_fails_stops_nothing():
    assert len(reported([DEAD], [DEAD], memory=Memory(fails_to_read=9, fails_to_write=9))) == 1


def test_what_could_not_be_remembered_is_tried_again_while_nothing_changes():
    memory = Memory(fails_to_write=1)
    reported([DEAD], [DEAD], memory=memory)
    assert reported([DEAD], memory=memory) == []


def test_a_memory_that_fails_for_a_moment_is_asked_again():
    memory = Memory()
    reported([DEAD], memory=memory)
    memory.fails_to_read = len(failed_experiment.RECALL_WAITS_SECONDS) - 1
    assert reported([DEAD], memory=memory) == []


def test_two_watchers_of_one_asset_do_not_forget_each_others_memory():
    memory, other = Memory(), replace(DEAD, experiment="/other/dead")
    for _ in range(2):
        found = reported([DEAD], memory=memory), reported([other], prefix="/other", memory=memory)
    assert found == ([], [])


@pytest.mark.parametrize("found", ["x", [1], {"a": 1}])
def test_a_memory_of_something_else_is_none(found):
    memory = Memory()
    reported([DEAD], memory=memory)
    memory.kept = {key: json.dumps(found) for key in memory.kept}
    assert len(reported([DEAD], memory=memory)) == 1


def test_of_too_many_those_are_forgotten_who_were_there_first(monkeypatch):
    monkeypatch.setattr(failed_experiment, "MAX_REMEMBERED", 3)
    a, b, c, d = (make_report(name) for name in "abcd")
    assert len(reported([a], [b], [c], [d], [b, c], [d])) == 4
    assert len(reported([a], [b], [c], [d], [a])) == 5


def test_what_a_restore_died_at_is_reported_again():
    at_work = make_report("dead", Health.RUNNING)
    left = replace(DEAD, abandoned=7)
    assert len(reported([DEAD], [at_work], [left], [left])) == 2


def test_all_that_is_remembered_fits_into_airflows_limit():
    memory = Memory()
    reported([make_report(f"e{n}") for n in range(failed_experiment.MAX_REMEMBERED)], memory=memory)
    (kept,) = memory.kept.values()
    assert len(kept) < 65536


def test_an_event_names_few_experiments_of_many():
    (names,) = reported([make_report(f"e{n}") for n in range(1000)])
    assert len(names) == 20


def test_an_event_names_what_a_hook_can_open():
    found = replace(DEAD, experiment="s3://bucket/sweeps/dead")
    address = ["s3://minio@bucket/sweeps/dead"]
    assert reported([found], prefix="s3://minio@bucket/sweeps") == [address]
    assert reported([found], prefix="s3://bucket/sweeps", storage_conn_id="minio") == [address]
    assert reported([found], prefix="s3://a@bucket/sweeps", storage_conn_id="minio") == [address]


def test_a_refusal_is_no_event_and_no_end():
    assert reported("no such connection", [DEAD]) == [["/sweeps/dead"]]


def test_watchers_and_sensors_of_one_prefix_share_one_poll(monkeypatch):
    """Through Airflow's own manager, as the triggerer does it."""
    shared_stream = pytest.importorskip("airflow.triggers.shared_stream", reason="since 3.3")
    polls = []

    def survey(*_arguments):
        polls.append(1)
        return [DEAD]

    monkeypatch.setattr(experiment_poller, "survey", survey)
    monkeypatch.setattr("airflow_tune_restore.triggers.experiment_sensor.FIRST_EVENT_SECONDS", 0)
    watcher = FailedTuneExperimentTrigger(prefix="/sweeps", poke_interval=3600)
    watcher.asset_state_store = None
    sensors = [
        ExperimentSensorTrigger(
            prefix="/sweeps",
            health=["interrupted"],
            stale_after_seconds=1800.0,
            poke_interval=3600.0,
        )
        for _ in range(100)
    ]

    async def first(streams, number, trigger):
        stream = streams.subscribe(
            trigger_id=number, trigger=trigger, key=trigger.shared_stream_key()
        )
        return await anext(trigger.filter_shared_stream(stream))

    async def share():
        streams = shared_stream.SharedStreamManager()
        waiting = [first(streams, n, trigger) for n, trigger in enumerate([watcher, *sensors])]
        found = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_SECONDS)
        await streams.stop_all()
        return found

    assert len(asyncio.run(share())) == 101
    assert len(polls) == 1
