"""Which trials can never be placed, and how long they are waited for."""

import logging
from dataclasses import replace

import pytest
from ray.tune import PlacementGroupFactory

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.room import PATIENCE, RoomWatch, has_room

GIB = 1024.0**3
SMALL, LARGE = {"CPU": 2.0, "memory": 4 * GIB}, {"CPU": 8.0, "GPU": 1.0, "memory": 16 * GIB}
REQUEST = RunnerRequest(
    experiment="/e", restore_id="r", trial_id="t", attempt=1, trainable="m:t",
    trainable_name="t", action="resume", address="head:6379",
)  # fmt: skip


def group(*bundles, strategy="PACK") -> PlacementGroupFactory:
    return PlacementGroupFactory(list(bundles), strategy=strategy)


@pytest.mark.parametrize(
    ("asked", "nodes", "fits"),
    [
        (group({"CPU": 8}), [SMALL, LARGE], True),
        (group({"CPU": 9}), [SMALL, LARGE], False),  # though both together have ten
        (group({"GPU": 0.5}, {"GPU": 0.5}), [LARGE], True),
        (group({"GPU": 1}, {"GPU": 0.5}), [LARGE], False),  # each fits, not both
        (group({"CPU": 1, "tpu": 1}), [LARGE], False),
        (group({"CPU": 1, "memory": 5 * GIB}), [SMALL], False),
        (group(*[{"CPU": 2}] * 5), [SMALL, LARGE], True),
        (group(*[{"CPU": 3}] * 3), [SMALL, LARGE], False),  # nine of ten, but two are alone
        (group(*[{"CPU": 2}] * 2, strategy="STRICT_PACK"), [SMALL, SMALL], False),
        (group(*[{"CPU": 2}] * 2, strategy="STRICT_PACK"), [LARGE], True),
        (group(*[{"CPU": 1}] * 2, strategy="STRICT_SPREAD"), [LARGE], False),
        (group(*[{"CPU": 1}] * 2, strategy="STRICT_SPREAD"), [LARGE, SMALL], True),
        (group({}, {"CPU": 2}), [SMALL], True),
        (group({"CPU": 0.1}), [{"CPU": 0.3}], True),
    ],
)
def test_what_no_node_can_hold_is_told_from_what_waits_for_others(asked, nodes, fits):
    assert has_room(asked, nodes) is fits


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_it_is_warned_of_at_once_and_each_minute_and_given_up_in_the_end(clock, caplog):
    watch = RoomWatch(150.0, "the cluster", clock)
    asked = {"big": group({"CPU": 64}), "busy": group({"CPU": 8})}
    given_up = {}
    with caplog.at_level(logging.WARNING):
        while not given_up:
            given_up = watch.look(lambda: asked, lambda: [SMALL, LARGE])
            clock.now += 1
    assert clock.now - 1000 == pytest.approx(151, abs=5)
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("Trial big requests CPU 64, and the cluster")
    assert "The largest of its 2 nodes has CPU 8." in caplog.messages[0]
    assert list(given_up) == ["big"]
    assert "tune.with_resources" in given_up["big"]


def test_one_that_finds_a_larger_node_starts_to_wait_anew(clock):
    watch = RoomWatch(150.0, "the cluster", clock)
    asked = {"big": group({"CPU": 64})}
    for _ in range(3):
        assert watch.look(lambda: asked, lambda: [SMALL]) == {}
        clock.now += 100
        assert watch.look(lambda: asked, lambda: [SMALL, {"CPU": 64.0}]) == {}
        clock.now += 100


def test_nobody_looks_more_often_than_every_few_seconds(clock):
    looks = []
    watch = RoomWatch(900.0, "the cluster", clock)
    for _ in range(100):
        watch.look(lambda: looks.append(1) or {}, list)
        clock.now += 0.1
    assert len(looks) == 2


def test_a_cluster_that_shows_no_node_is_not_taken_for_one_without_room(clock):
    watch = RoomWatch(150.0, "the cluster", clock)
    assert watch.look(lambda: {"t": group({"CPU": 1})}, list) == {}


def test_a_private_ray_without_a_node_has_died(clock):
    watch = RoomWatch(0.0, "the private Ray of this machine", clock)
    assert watch.look(dict, lambda: [SMALL]) == {}
    clock.now += 10
    with pytest.raises(RunnerError, match="has died"):
        watch.look(dict, list)


def test_a_private_ray_gets_no_other_node_and_is_not_waited_for():
    watch = RoomWatch.of(replace(REQUEST, address=None))
    (why,) = watch.look(lambda: {"t": group({"CPU": 3})}, lambda: [SMALL]).values()
    assert why.startswith("Trial t requests CPU 3, and the private Ray of this machine")
    assert "It has CPU 2." in why
    assert "launcher='ray' or launcher='kubernetes'" in why


def test_how_long_is_set_in_the_environment(monkeypatch):
    monkeypatch.setenv(PATIENCE, "7")
    clock = Clock()
    watch = RoomWatch.of(REQUEST, clock)
    asked = {"t": group(*[{"CPU": 1}] * 2, strategy="STRICT_SPREAD")}
    assert watch.look(lambda: asked, lambda: [SMALL]) == {}
    clock.now += 7
    (why,) = watch.look(lambda: asked, lambda: [SMALL]).values()
    assert "2 bundles of CPU 1 (STRICT_SPREAD)" in why
    assert "It waited 7 s." in why
    monkeypatch.setenv(PATIENCE, "soon")
    with pytest.raises(InvalidInputError, match="TUNE_RESTORE_ROOM_SECONDS is 'soon'"):
        RoomWatch.of(REQUEST)
