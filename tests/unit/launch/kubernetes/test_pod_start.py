"""Why a pod does not start; the texts are Kubernetes' own, of 1.29 to 1.34."""

import pytest

from airflow_tune_restore.launch.kubernetes.pod_start import is_pending, why_not_started

PULL = (
    'Failed to pull image "nope:1": failed to resolve reference "docker.io/library/nope:1": pull access '
    "denied, repository does not exist or may require authorization"
)


def pod(
    waiting: dict | None = None, *, name: str = "base", kind: str = "", **status: object
) -> dict:
    spec = {f"{kind}Containers" if kind else "containers": [{"name": name, "image": "nope:1"}]}
    states = {}
    if waiting is not None:
        where = f"{kind}ContainerStatuses" if kind else "containerStatuses"
        states = {where: [{"name": name, "state": {"waiting": waiting}}]}
    return {"spec": spec, "status": {"phase": "Pending", **states, **status}}


def warning(reason: str, message: str) -> dict:
    return {"type": "Warning", "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("waiting", "events", "words"),
    [
        (
            {"reason": "ErrImagePull", "message": "unauthorized: authentication required"},
            [],
            "Image nope:1 cannot be pulled (ErrImagePull): unauthorized: authentication required",
        ),
        (  # kubelets before 1.32 give the reason once, and then only in events
            {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "nope:1"'},
            [
                warning("Failed", PULL),
                warning("BackOff", "Back-off pulling"),
                warning("Failed", "Error"),
            ],
            f"Image nope:1 cannot be pulled (ImagePullBackOff): {PULL}",
        ),
        (
            {"reason": "InvalidImageName", "message": "couldn't parse image name"},
            [],
            "Image nope:1 cannot be pulled (InvalidImageName): couldn't parse image name",
        ),
        (
            {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'},
            [],
            'Container base cannot be made (CreateContainerConfigError): secret "keys" not found',
        ),
        (
            {"reason": "ContainerCreating"},
            [
                warning(
                    "FailedMount",
                    'MountVolume.SetUp failed for volume "v" : secret "keys" not found',
                )
            ],
            'MountVolume.SetUp failed for volume "v" : secret "keys" not found (FailedMount)',
        ),
        ({"reason": "ContainerCreating"}, [{"type": "Normal", "reason": "Pulling"}], ""),
    ],
)
def test_the_reason_is_told_in_the_words_of_whoever_knows_it(waiting, events, words):
    assert why_not_started(pod(waiting), events) == words


def test_an_init_container_or_a_sidecar_may_be_what_waits():
    waiting = {"reason": "ErrImagePull", "message": "not found"}
    assert "Image nope:1" in why_not_started(pod(waiting, name="setup", kind="init"), [])
    waiting = {"reason": "CreateContainerConfigError", "message": "no"}
    assert why_not_started(pod(waiting, name="proxy"), []).startswith(
        "Container proxy cannot be made"
    )


def test_a_pod_without_a_node_is_told_by_the_scheduler():
    said = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    conditions = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
    ]
    assert why_not_started(pod(conditions=conditions), []) == f"{said} (Unschedulable)"
    assert is_pending(pod())
    assert not is_pending({})


@pytest.mark.parametrize("nothing", [{}, {"status": None}, {"status": {"conditions": None}}])
def test_a_pod_that_tells_nothing_has_no_reason(nothing):
    assert why_not_started(nothing, []) == ""
