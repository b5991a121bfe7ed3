"""The pod of one attempt as a shell follows it: its state, its log, and its end."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.launch.base import RunState
from airflow_tune_restore.launch.kubernetes import api, container_log
from airflow_tune_restore.launch.kubernetes.api import LOG_SECONDS, POLL_SECONDS
from airflow_tune_restore.launch.kubernetes.bounded_client import PIECE_BYTES, REQUEST_SECONDS
from airflow_tune_restore.launch.kubernetes.named_pods import NamedPods
from airflow_tune_restore.launch.kubernetes.pod_exit import PodExit
from airflow_tune_restore.launch.kubernetes.pod_spec import name_of, trial_label
from airflow_tune_restore.launch.kubernetes.pod_start import has_no_image, has_started
from airflow_tune_restore.protocol.request import RunnerExit, RunnerRequest

logger = logging.getLogger(__name__)


class KubernetesRun:
    """The pod of one attempt.

    Args:
        start_seconds: How long the pod may wait for a node, and then for its image.

    Attributes:
        label: What the pod is, in the words that begin a message about it.
        stop_command: The shell command that deletes it.
    """

    def __init__(self, pods: NamedPods, request: RunnerRequest, start_seconds: float) -> None:
        self.name = name_of(request)
        self.label = (
            f"{trial_label(request)} of {request.experiment}: pod {self.name} in namespace "
            f"{pods.namespace}"
        )
        self.stop_command = f"kubectl -n {pods.namespace} delete pod {self.name}"
        self._pods = pods
        self._start_seconds = start_seconds
        self._exit: PodExit | None = None
        self._has_started = self._has_node = False
        self._waiting_since = time.monotonic()
        self._why_waiting = ""
        self._position = container_log.LogPosition()
        self._read_at: float | None = None
        self._log_is_readable = True

    def has_pod(self) -> bool:
        """Whether the pod exists; it may have ended."""
        with self._plain_errors():
            return self._pods.read(self.name) is not None

    def poll(self) -> RunState:
        """Return the state of the pod, after a short wait.

        Raises:
            InvalidInputError: If the runner cannot be started in this image; the pod is deleted.
            RunnerError: If the pod did not start in time, and is deleted; or if the cluster does not
                answer, and the pod continues.
        """
        if self._exit is not None:
            return RunState.ENDED
        time.sleep(POLL_SECONDS)
        with self._plain_errors():
            pod = self._pods.read(self.name)
            self._exit = self._pods.exit_of(self.name, pod)
            if self._exit is not None:
                self._refuse_unusable(self._exit)
                return RunState.ENDED
            if pod is not None and not self._has_started:
                self._has_started = has_started(pod, self._pods.watch.container)
                if not self._has_started:
                    self._wait_for_start(pod)
        return RunState.RUNNING if self._has_started else RunState.WAITING

    def output(self) -> Iterator[str]:
        """Yield the lines that were printed since the last call, each once.

        A log that cannot be read is read by the next call; after the end, it is asked for again.
        """
        if self._exit is None and not self._has_started:
            return
        patience = api.Patience(
            lambda error: api.is_gone(error, self.name) or api.status_of(error) == api.NO_SUCH_LOG,
            seconds=LOG_SECONDS if self._exit is not None and not self._exit.is_lost else 0.0,
            renew=self._pods.renew,
            what=f"the log of pod {self.name} is not read yet",
        )
        try:
            lines = patience.ask(self._read_log)
        except api.api_errors() as error:
            if self._log_is_readable and not api.is_gone(error, self.name):
                logger.warning("The log cannot be read just now. %s.", api.describe_outage(error))
            self._log_is_readable = False
        else:
            self._log_is_readable = True
            yield from lines

    def stop(self) -> None:
        """Delete the pod, and wait for its end (RunnerError without an answer: it may continue)."""
        with self._plain_errors():
            if not self._pods.delete(self.name):
                raise RunnerError(f"{self.label} could not be deleted. It may continue.")
            while self._pods.look(self.name) is None:
                time.sleep(POLL_SECONDS)

    def exit(self) -> RunnerExit:
        """Return how the runner exited, the cause in the last line; the pod is deleted."""
        end = self._exit
        assert end is not None  # noqa: S101  called after `ENDED`
        self._pods.delete(self.name)
        message = f"{end.last_words}\n{end.message}".strip()
        return RunnerExit(exit_code=end.exit_code, message=message)

    def _refuse_unusable(self, end: PodExit) -> None:
        """Delete a pod whose image or command can start no runner, and raise that."""
        if end.is_mistake:
            why = end.message
        elif end.lacks_package:
            why = f"The image does not have this package: {end.last_line}"
        else:
            return
        self._pods.delete(self.name)
        raise InvalidInputError(
            f"{self.label} did not start: {why.rstrip('.')}. Name an image and an interpreter that have "
            "Ray, airflow-tune-restore and the trainable."
        )

    def _wait_for_start(self, pod: dict[str, Any]) -> None:
        """Log why the pod waits, and give it up when its time is over or its image cannot be pulled."""
        why, now = self._pods.why_not_started(pod), time.monotonic()
        if why and why != self._why_waiting:
            self._why_waiting = why
            logger.warning("%s has not started: %s.", self.label, why.rstrip("."))
        has_node = bool((pod.get("spec") or {}).get("nodeName"))
        if has_node != self._has_node:
            self._has_node, self._waiting_since = has_node, now
        if now - self._waiting_since <= self._start_seconds and not has_no_image(pod):
            return
        given_up = self._pods.delete_unstarted(self.name)
        if given_up is not None:
            why = given_up.rstrip(".") or "Kubernetes gives no reason"
            raise RunnerError(f"{self.label} did not start: {why}. It was deleted.")

    def _read_log(self) -> list[str]:
        """Read the log since the last reading; of a log that breaks off, nothing is taken."""
        pods, container = self._pods, self._pods.watch.container
        asked_at, position = time.monotonic(), copy(self._position)
        since = {}
        if self._read_at is not None:
            since["since_seconds"] = math.ceil(asked_at - self._read_at) + 1
        position.begin_look()
        log = container_log.ContainerLog(position.is_new)
        response = pods.core.read_namespaced_pod_log(
            self.name,
            pods.namespace,
            container=container,
            timestamps=True,
            _preload_content=False,
            _request_timeout=REQUEST_SECONDS,
            **since,
        )
        try:
            while piece := response.read1(PIECE_BYTES, decode_content=False):
                log.take(piece)
                if time.monotonic() - asked_at > REQUEST_SECONDS:
                    raise TimeoutError(f"The log has not ended after {REQUEST_SECONDS:g} s")
            log.end()
        finally:
            response.close()
        self._position, self._read_at = position, asked_at
        lines = log.newest.take(container_log.whole_log(self.name, pods.namespace, container))
        return [line.partition(" ")[2] if container_log.time_of(line) else line for line in lines]

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except api.api_errors() as error:
            why = api.describe_outage(error).rstrip(".")
            raise RunnerError(
                f"{self.label} cannot be followed: {why}. It continues. Delete it: {self.stop_command}"
            ) from error
