"""A node for the API of `api.py`: it really runs a container's command, as a process of this machine.

The process gets the pod's environment (plain, from Secrets, ConfigMaps and fields), the files of its
volumes where nothing of that name is yet, and signals as a kubelet sends them. What it prints is the log.
"""

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.launch.local import (
    _kill_session,  # a container ends with its first process
)
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.support.kubernetes.api import KubernetesApi

NODE = "node-1"
PRESSURE = "The node was low on resource: ephemeral-storage."
_BARE = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}


class NotStartable(Exception):  # noqa: N818
    """Why a container cannot be started; Kubernetes tries again for ever."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Container:
    """The one container of a pod."""

    def __init__(self, pod: dict[str, Any]) -> None:
        self.pod = pod
        self.process: subprocess.Popen[str] | None = None
        self.said: list[tuple[float, str]] = []
        self.over = threading.Event()
        self.wanted_gone = threading.Event()
        self.verdict: dict[str, Any] = {}
        self.reason = ""
        self.made: list[Path] = []
        self.home = Path(tempfile.mkdtemp(prefix="tune-restore-pod-"))
        self.started_at = ""
        self.has_place = False


class Kubelet:
    """Runs every pod it is given, each in a thread.

    Args:
        api: Whom to report to.

    Attributes:
        images: The images it can pull, and their variables.
        delay_seconds: How long a pod waits for the node.
        has_room: Whether pods are scheduled at all.
        slots: How many pods run at the same time; the others wait.
    """

    def __init__(self, api: "KubernetesApi") -> None:
        self.api = api
        self.images: dict[str, dict[str, str]] = {}
        self.delay_seconds = 0.0
        self.has_room = True
        self.slots = 100
        self.containers: dict[str, Container] = {}

    # what a cluster does to pods

    def evict(self, name: str, message: str = PRESSURE, *, grace: float = 0) -> None:
        """Evict a pod for the node's sake: it stays, failed."""
        container = self.container(name)
        container.verdict = {"phase": "Failed", "reason": "Evicted", "message": message}
        self._target(container.pod, "TerminationByKubelet", message)
        self.api.report(container.pod, "Evicted", message, "Warning")
        self._end(container, grace)

    def preempt(self, name: str, *, grace: float | None = None) -> None:
        """Delete a pod for a more important one, as the scheduler does."""
        pod = self.container(name).pod
        message = f"{NODE}: preempting to accommodate a higher priority pod"
        self._target(pod, "PreemptionByScheduler", message)
        self.api.report(pod, "Preempted", f"Preempted by pod 42 on node {NODE}")
        self.api.delete(pod["metadata"]["namespace"], name, grace)

    def oom_kill(self, name: str) -> None:
        """Kill everything in a container, as the kernel does when its memory limit is reached."""
        container = self.container(name)
        container.reason = "OOMKilled"
        self._end(container, 0)

    def container(self, name: str) -> Container:
        return next(c for c in self.containers.values() if c.pod["metadata"]["name"] == name)

    # what the API server asks for

    def take(self, pod: dict[str, Any]) -> None:
        container = self.containers[pod["metadata"]["uid"]] = Container(pod)
        threading.Thread(target=self._live, args=(container,), daemon=True).start()

    def stop(self, pod: dict[str, Any], grace_seconds: float) -> None:
        """End a pod that was deleted; a finished one is removed at once."""
        container = self.containers[pod["metadata"]["uid"]]
        container.wanted_gone.set()
        if container.over.is_set():
            self.api.remove(pod)
            return
        self._end(container, grace_seconds)

    def lines(self, pod: dict[str, Any], *, follows: bool) -> Iterator[tuple[float, str | None]]:
        """Yield the log; None whenever there is nothing new."""
        container = self.containers[pod["metadata"]["uid"]]
        seen = 0
        while True:
            is_over = container.over.is_set()
            new = container.said[seen:]
            seen += len(new)
            yield from new
            if is_over or not follows:
                return
            yield 0.0, None
            time.sleep(0.1)

    def shut_down(self) -> None:
        for container in list(self.containers.values()):
            container.wanted_gone.set()
            self._end(container, 0)
        for container in list(self.containers.values()):
            container.over.wait(PATIENCE_SECONDS)

    # the life of a pod

    def _live(self, container: Container) -> None:
        pod = container.pod
        try:
            if self._await_node(container):
                self._run(container)
        finally:
            container.over.set()
            for path in container.made:
                path.unlink(missing_ok=True)
            shutil.rmtree(container.home, ignore_errors=True)
            if container.wanted_gone.is_set():
                self.api.remove(pod)

    def _await_node(self, container: Container) -> bool:
        pod = container.pod
        begun = time.monotonic()
        while time.monotonic() - begun < self.delay_seconds or not self._admit(container):
            if container.wanted_gone.wait(0.1):
                return False
        self._condition(pod, "PodScheduled")
        self.api.report(
            pod, "Scheduled", f"Successfully assigned {pod['metadata']['name']} to {NODE}"
        )
        return True

    def _admit(self, container: Container) -> bool:
        with self.api.lock:
            others = [c for c in self.containers.values() if c.has_place and not c.over.is_set()]
            container.has_place = self.has_room and len(others) < self.slots
            return container.has_place

    def _run(self, container: Container) -> None:
        pod = container.pod
        spec = pod["spec"]["containers"][0]
        self.api.set_status(pod, startTime=_now(), hostIP="127.0.0.1")
        while True:
            try:
                env = self._environment(pod, spec)
                break
            except NotStartable as error:
                state = {"waiting": {"reason": error.reason, "message": str(error)}}
                self._report_state(container, state, started=False)
                self.api.report(pod, "Failed", str(error), "Warning")
                if container.wanted_gone.wait(0.5):
                    return
        self._mount(container, spec)
        container.started_at = _now()
        container.process = subprocess.Popen(
            [*spec.get("command", ()), *spec.get("args", ())],
            env=env,
            cwd=container.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.api.set_status(pod, phase="Running", podIP="127.0.0.1")
        self._report_state(container, {"running": {"startedAt": container.started_at}})
        self._watch_deadline(container)
        if container.wanted_gone.is_set():
            self._end(container, 0)
        reader = threading.Thread(target=self._read, args=(container,), daemon=True)
        reader.start()
        os.waitid(os.P_PID, container.process.pid, os.WEXITED | os.WNOWAIT)
        _kill_session(container.process.pid)
        code = container.process.wait()
        reader.join(PATIENCE_SECONDS)
        self._report_end(container, 128 - code if code < 0 else code, spec)

    def _report_end(self, container: Container, code: int, spec: dict[str, Any]) -> None:
        reason = container.reason or ("Completed" if code == 0 else "Error")
        ended = {
            "exitCode": code,
            "reason": reason,
            "startedAt": container.started_at,
            "finishedAt": _now(),
        }
        if code and spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            ended["message"] = "\n".join(line for _, line in container.said[-80:])[-2048:]
        self._report_state(container, {"terminated": ended})
        phase = {"phase": "Succeeded" if code == 0 else "Failed"}
        self.api.set_status(container.pod, **(phase | container.verdict))

    def _report_state(
        self, container: Container, state: dict[str, Any], *, started: bool = True
    ) -> None:
        spec = container.pod["spec"]["containers"][0]
        status = {
            "name": spec["name"],
            "image": spec["image"],
            "imageID": spec["image"],
            "ready": "running" in state,
            "started": started,
            "restartCount": 0,
            "state": state,
            "lastState": {},
        }
        self.api.set_status(container.pod, containerStatuses=[status])

    def _read(self, container: Container) -> None:
        assert container.process is not None
        assert container.process.stdout is not None
        with contextlib.closing(container.process.stdout) as output:
            for line in output:
                container.said.append((datetime.now(UTC).timestamp(), line.rstrip("\n")))

    def _end(self, container: Container, grace_seconds: float) -> None:
        process = container.process
        if process is None or container.over.is_set():
            return
        if grace_seconds <= 0:
            _kill_session(process.pid)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)

        def kill() -> None:
            if not container.over.wait(grace_seconds):
                _kill_session(process.pid)

        threading.Thread(target=kill, daemon=True).start()

    def _watch_deadline(self, container: Container) -> None:
        spec = container.pod["spec"]
        seconds = spec.get("activeDeadlineSeconds")
        if not seconds:
            return

        def expire() -> None:
            if not container.over.wait(seconds):
                said = "Pod was active on the node longer than the specified deadline"
                container.verdict = {
                    "phase": "Failed",
                    "reason": "DeadlineExceeded",
                    "message": said,
                }
                self._end(container, spec.get("terminationGracePeriodSeconds", 30))

        threading.Thread(target=expire, daemon=True).start()

    def _environment(self, pod: dict[str, Any], spec: dict[str, Any]) -> dict[str, str]:
        if spec["image"] not in self.images:
            raise NotStartable("ErrImagePull", f"{spec['image']}: not found")
        namespace = pod["metadata"]["namespace"]
        env = {**_BARE, **self.images[spec["image"]]}
        for source in spec.get("envFrom") or ():
            if "secretRef" in source:
                env |= self._secret(namespace, source["secretRef"])
            else:
                env |= self._config_map(namespace, source["configMapRef"])
        for variable in spec.get("env") or ():
            env[variable["name"]] = self._value(pod, variable)
        return env

    def _value(self, pod: dict[str, Any], variable: dict[str, Any]) -> str:
        source = variable.get("valueFrom")
        if source is None:
            return variable.get("value") or ""
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
        try:
            encoded = self.api.secrets[namespace, reference["name"]]
        except KeyError:
            message = f'secret "{reference["name"]}" not found'
            raise NotStartable("CreateContainerConfigError", message) from None
        return {key: base64.b64decode(value).decode() for key, value in encoded.items()}

    def _config_map(self, namespace: str, reference: dict[str, Any]) -> dict[str, str]:
        return self.api.config_maps[namespace, reference["name"]]

    def _mount(self, container: Container, spec: dict[str, Any]) -> None:
        """Put volumes where they belong, unless this machine has something there: `/dev/shm`."""
        pod = container.pod
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
        for mount in spec.get("volumeMounts") or ():
            place, source = Path(mount["mountPath"]), container.home / f"volume-{mount['name']}"
            source.mkdir(exist_ok=True)
            secret = volumes[mount["name"]].get("secret")
            if secret is not None:
                reference = {"name": secret["secretName"]}
                for key, value in self._secret(pod["metadata"]["namespace"], reference).items():
                    (source / key).write_text(value)
            if not place.exists():
                place.symlink_to(source)
                container.made.append(place)

    def _target(self, pod: dict[str, Any], reason: str, message: str) -> None:
        self._condition(pod, "DisruptionTarget", reason=reason, message=message)

    def _condition(self, pod: dict[str, Any], kind: str, **details: str) -> None:
        condition = {"type": kind, "status": "True", "lastTransitionTime": _now(), **details}
        self.api.set_status(pod, conditions=[*pod["status"].get("conditions", ()), condition])


def merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    """Merge as a JSON merge patch does: maps by key, all else is replaced."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        elif value is None:
            target.pop(key, None)
        else:
            target[key] = value


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
