"""More of ../kept/test_resources_of_now.py: every way to ask, and every limit of one machine."""

from types import SimpleNamespace

import pytest

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_REFUSED
from tests.support.ray.real_restore import Restoring

ASKING = "tests.support.experiments.asking"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("errored", "three_bundles"), ("errored", "half_a_gigabyte"), ("errored", "objects_beside_it"),
     ("class", "Counter")],
)  # fmt: skip
def test_whatever_way_it_asks_the_private_ray_has_it(copied, kind, name):
    restoring = Restoring(copied(kind), kind, env={"CUDA_VISIBLE_DEVICES": "0"})
    ran = restoring.run(trainable=f"{ASKING}:{name}")
    assert ran.code == EXIT_FINISHED, ran.output
    assert ran.outcome.iteration == 6
    if name == "half_a_gigabyte":
        assert ran.outcome.metrics["memory_asked"] == 512 * 1024**2


@pytest.mark.parametrize(
    ("name", "env", "sentence"),
    [
        ("a_petabyte", {}, "requests CPU 1, memory 1048576.0 GiB"),
        ("objects_within_it", {}, "in its own bundle, which Ray refuses"),
        ("a_petabyte_of_objects", {}, "object_store_memory 1048576.0 GiB"),
        ("three_bundles", {"CUDA_VISIBLE_DEVICES": ""}, "It has CPU 2, GPU 0, special 1."),
        ("three_cpus", {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}, "It has CPU 2."),
        ("by_its_config", {}, "failed with KeyError: 'of_another_experiment'"),
    ],
)
def test_what_can_never_be_is_refused_in_one_sentence(copied, name, env, sentence):
    restoring = Restoring(copied("errored"), "errored", env=env)
    ran = restoring.run(trainable=f"{ASKING}:{name}")
    assert (ran.code, ran.outcome.result) == (EXIT_REFUSED, "refused"), ran.output
    assert f"Trial {restoring.trial.trial_id}" in ran.outcome.error
    assert sentence in ran.outcome.error
    assert "Traceback" not in ran.output


def test_in_a_run_of_all_what_can_never_be_is_refused_alone(copied):
    restoring = Restoring(copied("two_errored"), "two_errored", strategy="whole_experiment")
    parts = {trial.trial_id for trial in restoring.plan.to_run}
    restoring.trial = SimpleNamespace(trial_id=layout.WHOLE_EXPERIMENT)
    ran = restoring.run(trainable=f"{ASKING}:sparse_asks_for_two_nodes")
    assert ran.code == EXIT_FINISHED, ran.output
    ends = [AttemptRecords(restoring.store, restoring.restore_id, part).outcome() for part in parts]
    assert {(end.result, end.cause) for end in ends} == {("finished", ""), ("refused", "no_room")}
