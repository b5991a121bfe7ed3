"""What a pod asks for, and that Kubernetes would take every quantity."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.launch import pod_resources
from airflow_tune_restore.launch.pod_resources import PodShape

SHAPE = PodShape()
QUANTITY = re.compile(r"\d+(m|Mi)?")


def test_what_a_trial_asks_for_is_what_the_pod_gets_and_ray_on_top():
    shape = PodShape(custom_resources={"special": "example.com/special"})
    asked = {"CPU": 1.5, "GPU": 0.5, "memory": 2.0 * 1024**3, "special": 2.0, "only_ray": 1.0}
    assert pod_resources.container_resources({**asked, "example.com/fpga": 1.0}, shape) == {
        "cpu": "1500m",
        "nvidia.com/gpu": "1",
        "memory": f"{2048 + 1024 + 200}Mi",
        "example.com/special": "2",
        "example.com/fpga": "1",
    }


def test_a_trial_that_asks_for_little_gets_a_cpu_for_ray_itself():
    assert pod_resources.container_resources({"CPU": 0.1}, SHAPE) == {"cpu": "1"}
    assert pod_resources.container_resources({}, SHAPE) == {"cpu": "1"}


@given(st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "x/y"]), st.floats(0, 2**50)))
def test_every_amount_is_a_quantity(resources):
    for amount in pod_resources.container_resources(resources, SHAPE).values():
        assert QUANTITY.fullmatch(amount)


def test_what_the_user_gives_wins_but_more_memory_is_not_taken_away_again():
    asked = {"cpu": "1", "memory": "8192Mi"}
    given_ = {"limits": {"cpu": "4", "memory": "2Gi", "ephemeral-storage": "9Gi"}}
    assert pod_resources.merge_resources(asked, given_) == {
        "requests": {"cpu": "1", "memory": "8192Mi"},
        "limits": {"cpu": "4", "memory": "8192Mi", "ephemeral-storage": "9Gi"},
    }
    assert (
        pod_resources.merge_resources(asked, {"limits": {"memory": "16Gi"}})["limits"]["memory"]
        == "16Gi"
    )


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [
        ("1Gi", 2**30),
        ("1Ki", 1024),
        ("3Ei", 3 * 2**60),
        ("1500M", 1500 * 10**6),
        ("2k", 2000),
        ("12", 12),
        (12, 12),
        (0.5, Decimal("0.5")),
        ("1e3", 1000),
        ("1E3", 1000),
        ("500m", Decimal("0.5")),
        ("250000u", Decimal("0.25")),
        (None, 0),
        ("", 0),
        ("?", 0),
        ("1Qi", 0),
        ("1ki", 0),
        ("NaN", 0),
        ("Infinity", 0),
        ("1e99999999999999999999", 0),
    ],
)
def test_amounts_are_read_as_kubernetes_writes_them(quantity, amount):
    assert pod_resources.parse_amount(quantity) == amount


def test_a_limit_leaves_the_trial_what_ray_does_not_need():
    assert pod_resources.trial_memory("6Gi", SHAPE) == (6144 - 1024 - 200) * 1024**2
    assert pod_resources.trial_memory("1Gi", SHAPE) is None
    assert pod_resources.trial_memory(None, SHAPE) is None
    # what is left, asked for, gives the limit again
    left = pod_resources.trial_memory("6Gi", SHAPE)
    assert pod_resources.container_resources({"memory": left}, SHAPE)["memory"] == "6144Mi"
