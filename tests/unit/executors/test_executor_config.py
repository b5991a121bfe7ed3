"""executor_config of a task: what becomes of it in the submission of its job, and its mistakes."""

import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.executors.executor_config import parse_executor_config
from airflow_tune_restore.executors.settings import ExecutorSettings
from airflow_tune_restore.launch.ray.cluster import Cluster

KEYS = ("num_cpus", "num_gpus", "memory", "resources", "label_selector", "runtime_env")
SETTINGS = ExecutorSettings(
    place=Cluster(address="http://head:8265"),
    runtime_env={"env_vars": {"A": "1", "B": "1"}, "py_modules": ["s3://b/a.zip"], "pip": ["x"]},
    num_cpus=0.5,
)
SECRET = "hunter2"


@pytest.mark.parametrize("nothing", [None, {}, dict.fromkeys(KEYS)])
def test_without_one_the_section_counts(nothing):
    assert parse_executor_config(nothing, SETTINGS) == {
        "entrypoint_num_cpus": 0.5,
        "runtime_env": SETTINGS.runtime_env,
    }


def test_every_key_becomes_a_field_of_the_submission():
    config = {
        "num_cpus": 2, "num_gpus": 0.5, "memory": 1e9, "resources": {"spot": 1},
        "label_selector": {"ray.io/market-type": "!spot"},
    }  # fmt: skip
    assert parse_executor_config(config, SETTINGS) == {
        "entrypoint_num_cpus": 2.0,
        "entrypoint_num_gpus": 0.5,
        "entrypoint_memory": 10**9,
        "entrypoint_resources": {"spot": 1.0},
        "entrypoint_label_selector": {"ray.io/market-type": "!spot"},
        "runtime_env": SETTINGS.runtime_env,
    }


def test_its_runtime_env_is_put_over_that_of_the_section():
    own = {
        "env_vars": {"B": "2"},
        "py_modules": ("s3://b/b.zip",),
        "pip": ["y"],
        "working_dir": None,
    }
    assert parse_executor_config({"runtime_env": own}, SETTINGS)["runtime_env"] == {
        "env_vars": {"A": "1", "B": "2"},
        "py_modules": ["s3://b/a.zip", "s3://b/b.zip"],
        "pip": ["y"],
    }
    assert SETTINGS.runtime_env["env_vars"] == {"A": "1", "B": "1"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], f"executor_config is not a dict with the keys {', '.join(KEYS)}."),
        ({"cpus": 1}, f"has the unknown key cpus. RayExecutor knows {', '.join(KEYS)}."),
        ({"env_vars": {"A": SECRET}}, "has the unknown key env_vars."),
        ({1: 1}, "has the unknown key 1."),
        ({"pod_override": SECRET}, "has the key pod_override, which is for KubernetesExecutor."),
        ({"num_cpus": -1}, "executor_config['num_cpus'] is -1, which is not an amount"),
        ({"num_cpus": True}, "executor_config['num_cpus'] is True, which is not an amount"),
        ({"num_gpus": "1"}, "executor_config['num_gpus'] is '1', which is not an amount"),
        ({"num_gpus": float("nan")}, "executor_config['num_gpus'] is nan, which is not an amount"),
        ({"num_cpus": 10**400}, "executor_config['num_cpus'] is 1000"),
        ({"memory": True}, "executor_config['memory'] is True, which is not a number of bytes"),
        ({"memory": "4 GiB"}, "executor_config['memory']='4 GiB' is not a number of bytes"),
        ({"memory": float("inf")}, "executor_config['memory']=inf is not an amount of memory"),
        ({"resources": ["spot"]}, "executor_config['resources'] is not a dict with texts as keys. Write"),
        ({"resources": {"spot": "1"}}, "executor_config['resources']['spot'] is '1', which is not an am"),
        ({"resources": {"GPU": 1}}, "executor_config['resources'] has GPU. Use the key num_gpus of exec"),
        ({"label_selector": {"a": 1}}, "executor_config['label_selector']['a'] is 1, which is not a te"),
        ({"label_selector": {1: "a"}}, "executor_config['label_selector'] is not a dict with texts as"),
        ({"runtime_env": "x"}, "executor_config['runtime_env'] is not a JSON object."),
        ({"runtime_env": {1: 2}}, "executor_config['runtime_env'] is not a JSON object."),
        ({"runtime_env": {"env_vars": {"A": [SECRET]}}}, "executor_config['runtime_env']: env_vars in "),
        ({"runtime_env": {"working_dir": "/opt"}}, "executor_config['runtime_env']: working_dir has the"),
        ({"runtime_env": {"py_modules": ["code"]}}, ": py_modules has the local path code, which the ex"),
        ({"runtime_env": {"pip": {SECRET}}}, "executor_config['runtime_env'] cannot be sent as JSON."),
        ({"runtime_env": {"env_vars": {"A": 2**17 * "x"}}}, "the variable A is too long. Linux star"),
        ({"resources": {f"r{n}": 1 for n in range(10**5)}}, " bytes long; Ray takes 1,000,000."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_key(config, words):
    with pytest.raises(InvalidInputError) as error:
        parse_executor_config(config, SETTINGS)
    assert words in str(error.value)
    assert SECRET not in str(error.value)


PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.text() | st.integers(), part, max_size=3)
    ),
    max_leaves=8,
)
AMOUNTS = st.floats(0, 64) | st.integers(0, 64)
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "num_cpus": AMOUNTS | PARTS,
        "num_gpus": AMOUNTS | PARTS,
        "memory": st.integers(0) | AMOUNTS.map(str) | PARTS,
        "resources": st.dictionaries(st.text(), AMOUNTS) | PARTS,
        "label_selector": st.dictionaries(st.text(), st.text()) | PARTS,
        "runtime_env": PARTS
        | st.fixed_dictionaries(
            {},
            optional={
                "env_vars": st.dictionaries(st.text(), st.text()) | PARTS,
                "py_modules": st.lists(st.just("gcs://a.zip") | st.text(), max_size=2) | PARTS,
                "pip": PARTS,
            },
        ),
    },
)


@given(PLAUSIBLE | PARTS)
def test_whatever_it_is_it_is_refused_or_ray_takes_it(config):
    from ray.dashboard.modules.job.common import JobSubmitRequest

    try:
        fields = parse_executor_config(config, SETTINGS)
    except InvalidInputError:
        return
    request = httpx.Request("POST", "http://head:8265", json={"entrypoint": "true", **fields})
    JobSubmitRequest(**json.loads(request.content))
