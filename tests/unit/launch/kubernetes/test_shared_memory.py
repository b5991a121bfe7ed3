"""What the user's template mounts as shared memory, however it writes the path."""

import pytest
from kubernetes.client import models

from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions
from airflow_tune_restore.launch.kubernetes.pod_spec import keep_one_shm, shm_mount, shm_volume


def pod_with(path: str) -> models.V1Pod:
    mine = models.V1VolumeMount(name="mine", mount_path=path)
    container = models.V1Container(name="base", volume_mounts=[mine, shm_mount()])
    volumes = [models.V1Volume(name="mine"), shm_volume(PodSpecOptions())]
    return models.V1Pod(spec=models.V1PodSpec(containers=[container], volumes=volumes))


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/dev/shm", ["mine"]),
        ("/dev/shm/", ["mine"]),
        ("//dev/shm", ["mine"]),
        ("/dev//./shm//", ["mine"]),
        ("/dev/x/../shm", ["mine"]),
        ("/dev/shm/below", ["mine", "tune-restore-shm"]),
        ("/dev/shmem", ["mine", "tune-restore-shm"]),
    ],
)
def test_shared_memory_of_a_template_stays_however_its_path_is_written(path, kept):
    pod = pod_with(path)
    keep_one_shm(pod, pod.spec.containers[0])
    assert [mount.name for mount in pod.spec.containers[0].volume_mounts] == kept
    assert [volume.name for volume in pod.spec.volumes] == kept
