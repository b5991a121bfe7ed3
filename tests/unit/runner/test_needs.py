"""What trials ask for now, by Ray's own rules, and without a Ray."""

import json
from types import SimpleNamespace

import pytest
import ray
from ray import tune
from ray.tune.experiment import Experiment, Trial

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.runner import needs
from airflow_tune_restore.storage.memory import MemoryStore
from tests import trainables


def asked_for(trainable, *configs, param_space=None, recorded=None) -> list[dict[str, float]]:
    """Return what trials ask for that were recorded with other resources."""
    name = Experiment.register_if_needed(trainable)
    rows = []
    for number, config in enumerate(configs):
        trial = Trial(name, config=config, trial_id=f"t{number}", placement_group_factory=recorded)
        trial.placement_group_factory = recorded or tune.PlacementGroupFactory([{"CPU": 7}])
        rows.append(trial.get_json_state()[0])
    asked = needs.ask(trainable, rows, param_space)
    assert not ray.is_initialized()
    assert list(asked) == [f"t{number}" for number in range(len(configs))] or not configs
    return [factory.required_resources for factory in asked.values()]


def plain(config):
    """Ask for nothing in particular."""


class Sized(tune.Trainable):
    """Asks by its config."""

    @classmethod
    def default_resource_request(cls, config):
        return tune.PlacementGroupFactory([{"CPU": 1}, *[{"CPU": 2}] * config["workers"]])


def with_(resources):
    def train(config):
        pass

    return tune.with_resources(train, resources)


def test_the_trainable_of_now_decides_and_not_the_row():
    assert asked_for(plain, {}) == [{"CPU": 1}]
    assert asked_for(with_({"cpu": 3, "gpu": 0.5}), {}) == [{"CPU": 3, "GPU": 0.5}]
    groups = tune.PlacementGroupFactory([{"CPU": 1}, {"CPU": 2, "tpu": 1}], strategy="SPREAD")
    assert asked_for(with_(groups), {}) == [{"CPU": 3, "tpu": 1}]


def test_each_trial_asks_by_its_own_config():
    assert asked_for(Sized, {"workers": 1}, {"workers": 3}) == [{"CPU": 3}, {"CPU": 7}]
    by_config = with_(lambda config: {"cpu": config["n"], "memory": 1024})
    assert asked_for(by_config, {"n": 2}) == [{"CPU": 2, "memory": 1024}]


def test_what_was_recorded_as_asked_for_by_the_user_stays_if_the_trainable_asks_for_nothing():
    recorded = tune.PlacementGroupFactory([{"CPU": 5}])
    assert asked_for(plain, {}, recorded=recorded) == [{"CPU": 5}]


def test_a_trainer_asks_for_its_workers(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    trainer = trainables.make_trainer()
    name = Experiment.register_if_needed(trainer.as_trainable())
    row = Trial(name, trial_id="t0")
    row.placement_group_factory = tune.PlacementGroupFactory([{"CPU": 7}])
    (asked,) = needs.ask(trainer, [row.get_json_state()[0]], None).values()
    assert asked.bundles[-1] == {"CPU": 1}


def test_samples_of_an_experiment_without_trials_ask_for_what_the_trainable_asks_without_a_config():
    assert asked_for(with_({"gpu": 1})) == [{"GPU": 1}]
    assert asked_for(Sized) == []


def test_one_that_cannot_say_is_refused_with_the_name_of_its_trial():
    with pytest.raises(InvalidInputError, match=r"Trial t0: .*failed with KeyError: 'workers'"):
        asked_for(Sized, {})


def test_one_that_must_look_at_a_ray_is_taken_to_ask_for_what_was_recorded(caplog):
    looks_at_ray = with_(lambda config: {"cpu": len(ray.nodes())})
    assert asked_for(looks_at_ray, {}) == [{"CPU": 7}]
    assert "cannot be computed before Ray starts" in caplog.text


def test_the_most_of_each_resource_is_what_something_is_sized_by():
    asked = {
        "a": tune.PlacementGroupFactory([{"CPU": 1}, {"CPU": 2}]),
        "b": tune.PlacementGroupFactory([{"CPU": 1, "GPU": 1}]),
    }
    assert needs.most(asked) == {"CPU": 3, "GPU": 1}
    assert needs.most({}) == {}


def context_of(body: bytes | None) -> SimpleNamespace:
    store = MemoryStore()
    if body is not None:
        store.put("state.json", body)
    key = "state.json" if body is not None else None
    return SimpleNamespace(
        store=store, source_key=key, counts_for_size=lambda row: "kept" not in row
    )


def test_rows_are_those_that_the_run_is_sized_for():
    rows = [[json.dumps({"trial_id": name}), "{}"] for name in ("kept", "bad")]
    body = json.dumps({"trial_data": rows}).encode()
    assert needs.read_rows(context_of(body)) == ['{"trial_id": "bad"}']
    assert needs.read_rows(context_of(None)) == []


@pytest.mark.parametrize("body", [b'{"trial_data": [', b"{}", b'{"trial_data": [["{}"]]}'])
def test_a_damaged_state_sizes_nothing(body):
    with pytest.raises(RunnerError, match=r"state.json could not be restored.*Nothing was run"):
        needs.read_rows(context_of(body))


def test_a_row_that_ray_cannot_read_is_a_sentence_and_does_not_cost_the_others():
    name = Experiment.register_if_needed(plain)
    trial = Trial(name, trial_id="whole")
    trial.placement_group_factory = tune.PlacementGroupFactory([{"CPU": 7}])
    whole = trial.get_json_state()[0]
    torn = json.dumps({**json.loads(whole), "trial_id": "torn", "placement_group_factory": "80"})
    for rows in (["oops"], [torn], [torn, "oops"]):
        with pytest.raises(RunnerError, match=r"Ray cannot read the row of a trial: .*Nothing was"):
            needs.ask(plain, rows, None)
    assert list(needs.ask(plain, [torn, whole, "oops"], None)) == ["whole"]
