"""What the pod of a runner looks like, and that Kubernetes would take every name."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.launch.kubernetes import pod_spec as shapes
from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.request import RunnerRequest
from tests.support.kubernetes.container import expand

REQUEST = RunnerRequest(
    experiment="s3://bucket/sweeps/my exp",
    restore_id="airflow-1",
    trial_id="a1b2_00001",
    attempt=3,
    trainable="a:b",
    trainable_name="b",
    action="resume",
)
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def test_a_name_is_readable_and_the_same_every_time():
    name = shapes.pod_name("s3://b/e", "r", "Trial_00001", 2)
    assert name == shapes.pod_name("s3://b/e", "r", "Trial_00001", 2)
    assert re.fullmatch(r"tune-trial-00001-[0-9a-f]{12}-2", name)
    assert re.fullmatch(
        r"tune-whole-[0-9a-f]{12}-1", shapes.pod_name("s3://b/e", "r", WHOLE_EXPERIMENT, 1)
    )


@given(st.text(), st.text(), st.text(min_size=1), st.integers(1, 10**15 - 1))
def test_every_name_and_label_is_one_that_kubernetes_takes(experiment, restore_id, trial, attempt):
    assert NAME.fullmatch(shapes.pod_name(experiment, restore_id, trial, attempt))
    request = replace(
        REQUEST, experiment=experiment, restore_id=restore_id, trial_id=trial, attempt=attempt
    )
    for value in shapes.pod_labels(request).values():
        assert value == "" or LABEL.fullmatch(value)


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_two_trials_never_share_a_name(one, other):
    one, other = (tuple(part.replace("\0", "") for part in parts) for parts in (one, other))
    assert (shapes.pod_name(*one, 1) == shapes.pod_name(*other, 1)) == (one == other)


@given(st.text(), st.text())
def test_labels_that_had_to_be_changed_stay_apart(one, other):
    assert (shapes.label_value(one) == shapes.label_value(other)) == (one == other)


def test_labels_name_experiment_trial_restore_and_attempt():
    labels = shapes.pod_labels(REQUEST)
    assert labels.pop("tune-restore/experiment").startswith("my-exp-")
    assert labels == {
        "tune-restore/trial": "a1b2_00001",
        "tune-restore/restore": "airflow-1",
        "tune-restore/attempt": "3",
    }


def test_the_options_of_an_address_are_no_part_of_a_label_and_reach_the_runner():
    address = "s3://bucket/sweeps/exp?endpoint_override=http://host:1/minio"
    request = replace(REQUEST, experiment=address)
    assert shapes.pod_labels(request)["tune-restore/experiment"] == "exp"
    assert address in shapes.runner_command(request, "python")


def test_the_command_says_which_attempt():
    assert shapes.runner_command(REQUEST, "/opt/python") == [
        *("/opt/python", "-m", "airflow_tune_restore.runner", "run"),
        *("--experiment", "s3://bucket/sweeps/my exp", "--request"),
        ".tune_restore/airflow-1/trials/a1b2_00001/attempts/000003/request.json",
    ]


def test_shared_memory_is_a_little_larger_than_rays_object_store():
    volume = shapes.shm_volume(PodSpecOptions(object_store_bytes=1024**3))
    assert (volume.empty_dir.medium, volume.empty_dir.size_limit) == ("Memory", "1088Mi")
    assert (shapes.shm_mount().name, shapes.shm_mount().mount_path) == (volume.name, "/dev/shm")
    size = shapes.size_env({"CPU": 2.5}, PodSpecOptions(object_store_bytes=1024**3))
    assert size["TUNE_RESTORE_OBJECT_STORE_BYTES"] == str(1024**3)
    assert size["TUNE_RESTORE_CPUS"] == "3"


@given(st.text(alphabet="$()A b"))
def test_what_is_written_for_a_kubelet_is_what_the_process_reads(text):
    assert expand(shapes.escape(text), {"A": "expanded"}) == text
