"""A node for the API of `api.py`: it really runs the containers' commands, as processes of this machine.

The processes get the pod's environment (plain, from Secrets, ConfigMaps and fields), the files of its
volumes where nothing of that name is yet, and signals as a kubelet sends them. What they print is the
log.
"""

import base64
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.kubernetes.container import Container, NotStartable, expand, timestamp
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.support.kubernetes.api import KubernetesApi

NODE = "node-1"
PRESSURE = "The node was low on resource: ephemeral-storage."
STORAGE_LIMIT = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
DEADLINE = "Pod was active on the node longer than the specified deadline"
NO_ROOM = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available."
_BARE = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}


class PodLife:
    """A pod on the node."""

    def __init__(self, pod: dict[str, Any]) -> None:
        self.pod = pod
        self.name: str = pod["metadata"]["name"]
        self.containers = [Container(spec) for spec in pod["spec"]["containers"]]
        self.over = threading.Event()
        self.wanted_gone = threading.Event()
        self.is_condemned = False
        self.forgets_containers = False
        self.has_place = False
        self.made: list[Path] = []
        self.home = Path(tempfile.mkdtemp(prefix="tune-restore-pod-"))

    @property
    def base(self) -> Container:
        """The runner's container."""
        return next(c for c in self.containers if c.name == "base")

    @property
    def said(self) -> list[tuple[float, str]]:
        """What the runner printed, and when."""
        return self.base.said


class Kubelet:
    """Runs every pod it is given, each in a thread.

    Args:
        api: Whom to report to.

    Attributes:
        images: The images it can pull, and their variables.
        delay_seconds: How long a pod waits for the node.
        has_room: Whether pods are scheduled at all.
        slots: How many pods run at the same time; the others wait.
        rejects: Reason and message with which it rejects pods that it is given; None if it takes them.
        shows_logs: Whether its way to the logs is open.
        is_reachable: Set unless the node is cut off: it reports nothing then, and hears nothing.
        pods: All it ever ran, by uid.
    """

    def __init__(self, api: "KubernetesApi") -> None:
        self.api = api
        self.images: dict[str, dict[str, str]] = {}
        self.pods: dict[str, PodLife] = {}
        self.is_reachable = threading.Event()
        self.recover()

    def recover(self) -> None:
        """Be a healthy node."""
        self.delay_seconds = 0.0
        self.has_room = True
        self.slots = 100
        self.rejects: tuple[str, str] | None = None
        self.shows_logs = True
        self.is_reachable.set()

    # what a cluster does to pods

    def evict(
        self, name: str, message: str = PRESSURE, *, grace: float = 0, forgets: bool = False
    ) -> None:
        """Evict a pod for the node's sake: it stays, failed. Old kubelets forget its containers."""
        life = self.life(name)
        life.forgets_containers = forgets
        self._target(life.pod, "TerminationByKubelet", message)
        self._condemn(life, "Evicted", message, grace)

    def evict_for_its_own_storage(self, name: str) -> None:
        """Evict a pod that used more local storage than its limit: no disruption of the node's."""
        self._condemn(self.life(name), "Evicted", STORAGE_LIMIT, 0)

    def preempt(self, name: str, *, grace: float | None = None) -> None:
        """Delete a pod for a more important one, as the scheduler does."""
        pod = self.life(name).pod
        message = f"{NODE}: preempting to accommodate a higher priority pod"
        self._target(pod, "PreemptionByScheduler", message)
        self.api.report(pod, "Preempted", f"Preempted by pod 42 on node {NODE}")
        self.api.delete(pod["metadata"]["namespace"], name, grace)

    def oom_kill(self, name: str) -> None:
        """Kill everything in a container, as the kernel does when its memory limit is reached."""
        life = self.life(name)
        life.base.oom_killed = True
        self._end(life, 0)

    def oom_kill_worker(self, name: str) -> None:
        """Kill the process that trains, for its memory; the runner, the first process, lives on."""
        self.life(name).base.oom_kill_worker()

    def cut_off(self) -> None:
        """Take the node off the network: its pods run on, their statuses stand still."""
        self.is_reachable.clear()

    def taint(self, name: str) -> None:
        """Delete a pod of a node that is cut off, as the taint manager does after five minutes."""
        pod = self.life(name).pod
        message = "Taint manager: deleting due to NoExecute taint"
        self._target(pod, "DeletionByTaintManager", message)
        self.api.report(pod, "TaintManagerEviction", f"Marking for deletion Pod {name}")
        self.api.delete(pod["metadata"]["namespace"], name, None)

    def life(self, name: str) -> PodLife:
        return next(life for life in self.pods.values() if life.name == name)

    # what the API server asks for

    def take(self, pod: dict[str, Any]) -> None:
        life = self.pods[pod["metadata"]["uid"]] = PodLife(pod)
        self._tell_no_room(life)  # before a task can read the pod, however late the thread comes
        threading.Thread(target=self._live, args=(life,), daemon=True).start()

    def stop(self, pod: dict[str, Any], grace_seconds: float) -> None:
        """End a pod that was deleted; a finished one is removed at once."""
        life = self.pods[pod["metadata"]["uid"]]
        life.wanted_gone.set()
        if life.over.is_set():
            self.api.remove(pod)
            return
        self._end(life, grace_seconds)

    def lines(
        self, pod: dict[str, Any], container: str, *, follows: bool
    ) -> Iterator[tuple[float, str | None]]:
        """Yield the log; None whenever there is nothing new."""
        life = self.pods[pod["metadata"]["uid"]]
        log = next(c for c in life.containers if c.name == container)
        seen = 0
        while self.shows_logs and self.is_reachable.is_set():
            is_over = log.over.is_set()
            new = log.said[seen:]
            seen += len(new)
            yield from new
            if is_over or not follows:
                return
            yield 0.0, None
            time.sleep(0.1)

    def shut_down(self) -> None:
        self.is_reachable.set()
        for life in list(self.pods.values()):
            life.wanted_gone.set()
            self._end(life, 0)
        for life in list(self.pods.values()):
            life.over.wait(PATIENCE_SECONDS)

    # the life of a pod

    def _live(self, life: PodLife) -> None:
        try:
            if self._await_node(life) and not self._reject(life):
                self._run(life)
        finally:
            for path in life.made:
                path.unlink(missing_ok=True)
            shutil.rmtree(life.home, ignore_errors=True)
            self.is_reachable.wait()
            life.over.set()
            if life.wanted_gone.is_set():
                self.api.remove(life.pod)

    def _await_node(self, life: PodLife) -> bool:
        pod = life.pod
        begun = time.monotonic()
        while time.monotonic() - begun < self.delay_seconds or not self._admit(life):
            self._tell_no_room(life)
            if life.wanted_gone.wait(0.1):
                return False
        with self.api.lock:  # a container that cannot be made says so as soon as the pod has a node
            pod["spec"]["nodeName"] = NODE
            self._condition(pod, "PodScheduled")
            self.api.report(pod, "Scheduled", f"Successfully assigned {life.name} to {NODE}")
            if self.rejects is None and self.is_reachable.is_set():
                for container in life.containers:
                    self._prepare(life, container)
        return True

    def _tell_no_room(self, life: PodLife) -> None:
        pod = life.pod
        if not self.has_room and not pod["status"].get("conditions"):
            scheduled = {"status": "False", "reason": "Unschedulable", "message": NO_ROOM}
            self._condition(pod, "PodScheduled", **scheduled)
            self.api.report(pod, "FailedScheduling", NO_ROOM, "Warning")

    def _admit(self, life: PodLife) -> bool:
        with self.api.lock:
            others = [other for other in self.pods.values() if other.has_place]
            taken = sum(not other.over.is_set() for other in others)
            life.has_place = self.has_room and taken < self.slots
            return life.has_place

    def _reject(self, life: PodLife) -> bool:
        if self.rejects is None:
            return False
        reason, message = self.rejects
        self.api.set_status(life.pod, phase="Failed", reason=reason, message=message)
        self.api.report(life.pod, reason, message, "Warning")
        return True

    def _run(self, life: PodLife) -> None:
        self.api.set_status(life.pod, startTime=timestamp(), hostIP="127.0.0.1", podIP="127.0.0.1")
        self._watch_deadline(life)
        threads = [
            threading.Thread(target=self._run_container, args=(life, container), daemon=True)
            for container in life.containers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run_container(self, life: PodLife, container: Container) -> None:
        if self._start(life, container):
            self._report(life)
            if life.wanted_gone.is_set():
                self._end(life, 0)
            container.wait()
            self._report(life)

    def _start(self, life: PodLife, container: Container) -> bool:
        """Start a container, as soon as it can be."""
        while (env := self._prepare(life, container)) is None:
            if life.wanted_gone.wait(0.5) or life.is_condemned:
                return False
        container.start(env, life.home)
        return True

    def _prepare(self, life: PodLife, container: Container) -> dict[str, str] | None:
        """Mount its volumes and return its environment; None, and report why, if it cannot be made."""
        try:
            self._mount(life, container.spec)
            return self._environment(life.pod, container.spec)
        except NotStartable as error:
            container.wait_with(error)
            self._report(life)
            reason = "FailedMount" if "MountVolume" in str(error) else "Failed"
            self.api.report(life.pod, reason, str(error), "Warning")
            return None

    def _report(self, life: PodLife) -> None:
        """Report containers and phase, as soon as the node is reachable.

        A pod is `Pending` while any of its containers waits, whatever the others do.
        """
        self.is_reachable.wait()
        with self.api.lock:
            states = [container.state for container in life.containers]
            statuses = [container.status() for container in life.containers]
            self.api.set_status(
                life.pod, containerStatuses=None if life.forgets_containers else statuses
            )
            if life.is_condemned:
                return
            ended = [state["terminated"] for state in states if "terminated" in state]
            waits = any("waiting" in state for state in states)
            phase = "Pending" if waits else "Running"
            if len(ended) == len(states):
                phase = "Failed" if any(end["exitCode"] for end in ended) else "Succeeded"
            self.api.set_status(life.pod, phase=phase)

    def _condemn(self, life: PodLife, reason: str, message: str, grace: float) -> None:
        """Fail a pod and then end its containers, which the kubelet reports to run until they have."""
        life.is_condemned = True
        self.api.set_status(life.pod, phase="Failed", reason=reason, message=message)
        self.api.report(life.pod, reason, message, "Warning")
        self._end(life, grace)

    def _end(self, life: PodLife, grace_seconds: float) -> None:
        def end() -> None:
            self.is_reachable.wait()
            if grace_seconds > 0:
                for container in life.containers:
                    container.terminate()
                _wait_all(life, grace_seconds)
            for container in life.containers:
                container.kill()

        if grace_seconds <= 0 and self.is_reachable.is_set():
            end()
        else:
            threading.Thread(target=end, daemon=True).start()

    def _watch_deadline(self, life: PodLife) -> None:
        spec = life.pod["spec"]
        seconds = spec.get("activeDeadlineSeconds")

        def expire() -> None:
            if not life.over.wait(seconds):
                grace = spec.get("terminationGracePeriodSeconds", 30)
                self._condemn(life, "DeadlineExceeded", DEADLINE, grace)

        if seconds:
            threading.Thread(target=expire, daemon=True).start()

    def _environment(self, pod: dict[str, Any], spec: Any) -> dict[str, str]:
        image = spec["image"]
        if image not in self.images:
            message = (
                f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": '
                f"{image}: not found"
            )
            raise NotStartable("ErrImagePull", message)
        namespace = pod["metadata"]["namespace"]
        env = {**_BARE, **self.images[image]}
        for source in spec.get("envFrom") or ():
            if "secretRef" in source:
                env |= self._secret(namespace, source["secretRef"])
            else:
                env |= self._config_map(namespace, source["configMapRef"])
        for variable in spec.get("env") or ():
            env[variable["name"]] = self._value(pod, variable, env)
        return env

    def _value(self, pod: dict[str, Any], variable: dict[str, Any], env: dict[str, str]) -> str:
        source = variable.get("valueFrom")
        if source is None:
            return expand(variable.get("value") or "", env)
        namespace = pod["metadata"]["namespace"]
        if "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            return self._secret(namespace, reference)[reference["key"]]
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            return self._config_map(namespace, reference)[reference["key"]]
        value: Any = pod
        for part in source["fieldRef"]["fieldPath"].split("."):
            value = value[part]
        return str(value)

    def _secret(self, namespace: str, reference: dict[str, Any]) -> dict[str, str]:
        encoded = _find("secret", self.api.secrets, namespace, reference["name"])
        return {key: base64.b64decode(value).decode() for key, value in encoded.items()}

    def _config_map(self, namespace: str, reference: dict[str, Any]) -> dict[str, str]:
        return _find("configmap", self.api.config_maps, namespace, reference["name"])

    def _mount(self, life: PodLife, spec: Any) -> None:
        """Put volumes where they belong, unless this machine has something there: `/dev/shm`."""
        pod = life.pod
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
        for mount in spec.get("volumeMounts") or ():
            place, source = Path(mount["mountPath"]), life.home / f"volume-{mount['name']}"
            source.mkdir(exist_ok=True)
            secret = volumes[mount["name"]].get("secret")
            if secret is not None:
                for key, value in self._files(pod, mount["name"], secret["secretName"]).items():
                    (source / key).write_text(value)
            if not place.exists():
                place.symlink_to(source)
                life.made.append(place)

    def _files(self, pod: dict[str, Any], volume: str, secret: str) -> dict[str, str]:
        """Return the files of a Secret; a container waits for it without a reason of its own."""
        try:
            return self._secret(pod["metadata"]["namespace"], {"name": secret})
        except NotStartable as error:
            message = f'MountVolume.SetUp failed for volume "{volume}" : {error}'
            raise NotStartable("ContainerCreating", message) from None

    def _target(self, pod: dict[str, Any], reason: str, message: str) -> None:
        self._condition(pod, "DisruptionTarget", reason=reason, message=message)

    def _condition(self, pod: dict[str, Any], kind: str, **details: str) -> None:
        condition = {"type": kind, "status": "True", "lastTransitionTime": timestamp(), **details}
        with self.api.lock:
            others = [c for c in pod["status"].get("conditions") or () if c["type"] != kind]
            self.api.set_status(pod, conditions=[*others, condition])


def _find(
    kind: str, known: dict[tuple[str, str], dict[str, str]], namespace: str, name: str
) -> dict[str, str]:
    try:
        return known[namespace, name]
    except KeyError:
        message = f'{kind} "{name}" not found'
        raise NotStartable("CreateContainerConfigError", message) from None


def _wait_all(life: PodLife, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for container in life.containers:
        container.over.wait(max(0.0, deadline - time.monotonic()))


def merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    """Merge as a JSON merge patch does: maps by key, all else is replaced."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        elif value is None:
            target.pop(key, None)
        else:
            target[key] = value
