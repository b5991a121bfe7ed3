"""What a pod asks for, and that Kubernetes would take every quantity."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.kubernetes import pod_resources
from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions

SHAPE = PodSpecOptions()
QUANTITY = re.compile(r"\d+(m|Mi)?")


def test_what_a_trial_asks_for_is_what_the_pod_gets_and_ray_on_top():
    shape = PodSpecOptions(custom_resources={"special": "example.com/special"})
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


FITTING = [
    "example.com/fpga",
    "a/b",
    "a-b.c/D_e.f-g",
    "x" * 244 + "/y",
    "example.com/" + "n" * 63,
    "my.requests.example.com/y",
]
UNFIT = [
    "fpga",
    "",
    "/fpga",
    "example.com/",
    "example.com/a/b",
    "a..b/c",
    "a.-b/c",
    "a-.b/c",
    ".a/c",
    "Example.com/fpga",
    "exämple.com/fpga",
    "example.com/fpgä",
    "example.com/٣",
    "example.com/-fpga",
    "example.com/fpga_",
    "example.com/fpga\n",
    "example.com/" + "n" * 64,
    "x" * 245 + "/y",  # Kubernetes puts "requests." in front, and allows 253
    "requests.example.com/fpga",
    "devices.kubernetes.io/kvm",
    "kubernetes.io/fpga",
]


@pytest.mark.parametrize("name", FITTING)
def test_a_name_that_fits_a_cluster_is_asked_for(name):
    assert pod_resources.cluster_resource(name, SHAPE) == name
    assert pod_resources.cluster_resource("r", PodSpecOptions(custom_resources={"r": name})) == name
    assert PodSpecOptions(gpu_resource=name).gpu_resource == name


@pytest.mark.parametrize("name", UNFIT)
def test_a_name_that_fits_no_cluster_is_rays_affair_or_the_users_mistake(name):
    assert pod_resources.cluster_resource(name, SHAPE) is None
    for arguments in ({"custom_resources": {"r": name}}, {"gpu_resource": name}):
        with pytest.raises(InvalidInputError) as refusal:
            PodSpecOptions(**arguments)
        (argument,) = arguments
        assert str(refusal.value).startswith(f"{argument}=")
        assert repr(name) in str(refusal.value)


@pytest.mark.parametrize("name", [None, 3, b"a/b"])
def test_what_is_not_text_names_nothing_in_a_cluster(name):
    with pytest.raises(InvalidInputError, match="custom_resources="):
        PodSpecOptions(custom_resources={"r": name})


@pytest.mark.parametrize("size", [0, -1])
def test_an_object_store_of_no_size_is_refused(size):
    with pytest.raises(InvalidInputError, match=f"object_store_memory={size} "):
        PodSpecOptions(object_store_bytes=size)


@given(st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "x/y"]), st.floats(0, 2**50)))
def test_every_amount_is_a_quantity(resources):
    for amount in pod_resources.container_resources(resources, SHAPE).values():
        assert QUANTITY.fullmatch(amount)


def merge(asked, requests=None, limits=None) -> tuple[dict, dict]:
    merged = pod_resources.merge_resources(asked, {"requests": requests, "limits": limits})
    return merged["requests"], merged["limits"]


def test_what_the_user_gives_wins_but_more_memory_is_not_taken_away_again():
    asked = {"cpu": "1", "memory": "8192Mi"}
    assert merge(asked, limits={"cpu": "4", "memory": "2Gi", "ephemeral-storage": "9Gi"}) == (
        {"cpu": "1", "memory": "8192Mi"},
        {"cpu": "4", "memory": "8192Mi", "ephemeral-storage": "9Gi"},
    )
    assert merge(asked, limits={"memory": "16Gi"})[1]["memory"] == "16Gi"
    assert merge({}, requests={"memory": "2Gi"}) == ({"memory": "2Gi"}, {})


@pytest.mark.parametrize(
    ("name", "request_given", "limit_given", "pair"),
    [
        ("cpu", "8", None, ("8", "8")),
        ("cpu", "500m", None, ("500m", "4")),
        ("cpu", None, "2", ("2", "2")),
        ("cpu", None, "8", ("4", "8")),
        ("cpu", "2", "8", ("2", "8")),
        ("cpu", "8", "2", ("8", "2")),  # contradictory: the API server refuses it
        ("memory", "16Gi", None, ("16Gi", "16Gi")),
        ("memory", "1Gi", None, ("4Gi", "4Gi")),
        ("memory", None, "1Gi", ("4Gi", "4Gi")),
        ("memory", None, "16Gi", ("4Gi", "16Gi")),
        ("memory", "1Gi", "2Gi", ("4Gi", "4Gi")),
        ("nvidia.com/gpu", "8", None, ("8", "8")),
        ("nvidia.com/gpu", None, "1", ("1", "1")),
        ("nvidia.com/gpu", None, None, ("4", "4")),
        ("nvidia.com/gpu", 1, "1", ("1", "1")),
    ],
)
def test_of_request_and_limit_the_one_not_given_follows(name, request_given, limit_given, pair):
    asked = {name: "4Gi" if name == "memory" else "4"}
    requests, limits = merge(asked, {name: request_given}, {name: limit_given})
    assert (requests[name], limits[name]) == pair


def test_what_no_trial_asks_for_is_left_to_the_user_and_the_api_server():
    assert merge({}, requests={"ephemeral-storage": "1Gi"}) == ({"ephemeral-storage": "1Gi"}, {})
    assert merge({}, limits={"ephemeral-storage": "1Gi"}) == ({}, {"ephemeral-storage": "1Gi"})
    for name in ("example.com/fpga", "hugepages-2Mi"):  # these cannot be overcommitted
        assert merge({}, requests={name: "2"}) == ({name: "2"}, {name: "2"})
        assert merge({}, limits={name: "2"}) == ({name: "2"}, {name: "2"})
    name = "devices.kubernetes.io/kvm"  # Kubernetes' own, for all its "/"
    assert merge({}, limits={name: "2"}) == ({}, {name: "2"})


NAMES = ("cpu", "memory", "ephemeral-storage", "nvidia.com/gpu", "x/y", "hugepages-2Mi")
EQUAL = frozenset({"nvidia.com/gpu", "x/y", "hugepages-2Mi"})
AMOUNTS = st.builds("{}{}".format, st.integers(0, 9999), st.sampled_from(["", "k", "Mi", "Gi"]))


@st.composite
def users(draw) -> dict[str, dict[str, str]]:
    """Draw what a user gives who does not contradict himself."""
    given_: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    for name in NAMES:
        least, most = sorted((draw(AMOUNTS), draw(AMOUNTS)), key=pod_resources.parse_amount)
        if draw(st.booleans()):
            given_["requests"][name] = most if name in EQUAL else least
        if draw(st.booleans()):
            given_["limits"][name] = most
    return given_


@given(
    st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "x/y"]), st.floats(0, 2**50)), users()
)
def test_no_request_is_above_its_limit_and_no_memory_below_what_is_asked_for(resources, given_):
    asked = pod_resources.container_resources(resources, SHAPE)
    merged = pod_resources.merge_resources(asked, given_)
    requests, limits = (
        {name: pod_resources.parse_amount(amount) for name, amount in merged[kind].items()}
        for kind in ("requests", "limits")
    )
    for name in requests.keys() & limits.keys():
        assert requests[name] <= limits[name]
    for name in EQUAL:
        assert requests.get(name) == limits.get(name)
    for name, amount in asked.items():
        assert name in requests
        assert name in limits
        if name == "memory":
            assert requests[name] >= pod_resources.parse_amount(amount)
    for kind, wanted in given_.items():
        for name, amount in wanted.items():
            assert merged[kind][name] == amount or (name == "memory" and name in asked)


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
