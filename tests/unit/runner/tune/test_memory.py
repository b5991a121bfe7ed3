"""What a trial asks for when its attempt asks for more memory."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.tune import memory

GIB = 1024.0**3
REQUEST = RunnerRequest(
    experiment="/e", restore_id="r", trial_id="t", attempt=1, trainable="m:t",
    trainable_name="t", action="resume", address="head:6379", resources={"memory": 8 * GIB},
)  # fmt: skip


@pytest.fixture(autouse=True)
def largest(monkeypatch):
    monkeypatch.setattr(memory, "nodes", lambda: [{"CPU": 8, "GPU": 1, "memory": 64 * GIB}])


@pytest.fixture
def asks(monkeypatch):
    """Return what a trial with these resources asks for in an attempt."""

    def compute(bundles, request=REQUEST):
        def own(trial):
            trial.placement_group_factory = PlacementGroupFactory(bundles, strategy="SPREAD")

        monkeypatch.setattr(Trial, "create_placement_group_factory", own)
        trial = SimpleNamespace(invalidate_json_state=lambda: None)
        with memory.more_memory(request):
            Trial.create_placement_group_factory(trial)
        return trial

    return compute


def test_a_trial_that_asked_for_none_asks_for_it_at_its_head(asks):
    asked = asks([{"CPU": 1}, {"GPU": 1}]).placement_group_factory
    assert asked.bundles == [{"CPU": 1, "memory": 8 * GIB}, {"GPU": 1}]
    assert asked.strategy == "SPREAD"


def test_what_it_asks_for_in_parts_grows_in_parts(asks):
    asked = asks([{"CPU": 1, "memory": GIB}, {"CPU": 2, "memory": 3 * GIB}]).placement_group_factory
    assert [bundle["memory"] for bundle in asked.bundles] == [2 * GIB, 6 * GIB]


def test_an_empty_head_stays_empty(asks):
    asked = asks([{}, {"CPU": 2, "memory": 4 * GIB}]).placement_group_factory
    assert asked.head_bundle_is_empty
    assert asked.bundles == [{"CPU": 2, "memory": 8 * GIB}]


def test_it_is_never_less_than_its_own(asks):
    bundles = [{"CPU": 1.0, "memory": 9 * GIB}]
    assert asks(bundles).placement_group_factory.bundles == bundles


def test_it_is_never_more_than_the_largest_node_has(asks, monkeypatch):
    monkeypatch.setattr(memory, "nodes", lambda: [{"CPU": 2, "memory": 5 * GIB}])
    (bundle,) = asks([{"CPU": 1}]).placement_group_factory.bundles
    assert bundle["memory"] == 5 * GIB


def test_only_a_node_with_the_rest_of_what_it_asks_for_counts(asks, monkeypatch):
    there = [{"CPU": 2, "memory": 64 * GIB}, {"CPU": 2, "GPU": 1, "memory": 6 * GIB}]
    monkeypatch.setattr(memory, "nodes", lambda: there)
    (bundle,) = asks([{"CPU": 1, "GPU": 1}]).placement_group_factory.bundles
    assert bundle["memory"] == 6 * GIB


def test_a_private_ray_is_not_asked(asks):
    asked = asks([{"CPU": 1.0}], replace(REQUEST, address=None))
    assert asked.placement_group_factory.bundles == [{"CPU": 1.0}]


def test_the_row_shows_its_own(asks):
    trial = asks([{"CPU": 1.0}])
    trial.create_placement_group_factory = lambda: Trial.create_placement_group_factory(trial)
    with memory.own_resources(trial, REQUEST):
        assert trial.placement_group_factory.bundles == [{"CPU": 1.0}]
    assert trial.placement_group_factory.bundles == [{"CPU": 1.0, "memory": 8 * GIB}]
