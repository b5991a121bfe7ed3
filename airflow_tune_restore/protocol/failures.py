"""The cause of a failed attempt, from texts: Ray's error files, exit codes, messages of jobs and pods.

Nothing is unpickled. The texts are those of Ray 2.40 to 2.60 (samples in tests/golden/errors), but may
hold anything: each line is matched once, and all results are short. Standard library only: runners use
it inside Ray images.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from airflow_tune_restore.protocol.printable import printable, shortened
from airflow_tune_restore.protocol.record_fields import LINE_LENGTH
from airflow_tune_restore.protocol.request import (
    EXIT_FENCED,
    EXIT_INTERRUPTED,
    EXIT_PAUSED,
    EXIT_REFUSED,
)

_READ_LIMIT = 32_768
"""Characters that are read from each end of a failure's text."""


class Cause(StrEnum):
    """The cause that ended an attempt."""

    OUT_OF_MEMORY = "out_of_memory"  # killed by Ray or Kubernetes for its memory, or a MemoryError
    NODE_LOST = "node_lost"  # the node died, was preempted or drained
    ACTOR_DIED = "actor_died"  # a worker process died for an unknown reason
    STORAGE = "storage"  # a checkpoint or result could not be written or read
    TRAINABLE = "trainable"  # the trainable's own exception
    NO_ROOM = "no_room"  # no node could hold the request of the trial; it did not run
    KILLED = "killed"  # the runner was killed before it recorded an outcome
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failure of an attempt.

    Args:
        type: Type of the exception, with its module if the text has it; "" without an exception.
        message: First line of its message.
        place: Innermost line of the user's code, as `project/training.py:12 in train`; "" if unknown.
        iteration: Last `training_iteration` reported before it.
    """

    cause: Cause
    type: str = ""
    message: str = ""
    place: str = ""
    iteration: int = 0


_NEW_FAILURE = "Failure # "
"""The start of each failure in error.txt (ray.tune.experiment.trial.Trial.handle_error, 2.60)."""

_NEW_TRACEBACK = ("ray::", "Traceback ", "The above exception was", "During handling of the above")
_FRAME = re.compile(r'[ |]*File "([^"]{1,1000})", line (\d{1,9}), in (.{1,200})')
_EXCEPTION = re.compile(r"(?: {1,4}\| )?([A-Za-z_][\w.]{0,199}(?:\([\w.]{1,199}\))?)(?:: (.*))?$")
_COLOUR = re.compile(r"\x1b\[\d{1,3}m")

_INSTALLED = re.compile(r"/(?:site|dist)-packages/|/lib(?:64)?/python3|^<frozen |^pyarrow/|\.pyx$")
_RAY = re.compile(r"/(?:site|dist)-packages/ray/|^python/ray/")

# fixed words of Ray's own texts (GcsActorManager, the raylet's memory monitor). For a worker that died
# without a message, Ray adds a hint with several guesses, "the OOM killer" among them: it proves nothing.
_MEMORY_WORDS = (
    "running low on memory", "due to memory pressure", "oomkilled", "was low on resource: memory",
)  # fmt: skip
_NODE_WORDS = (
    "node has died", "node died", "node was terminated", "preempt", "nodedied",
    "its node is dead", "node is dead", "raylet died", "node lost", "nodelost", "node shutdown",
    "spot interruption", "spot instance", "draining", "node is not ready", "pod was evicted",
    "rejected by its node",
)  # fmt: skip
_POD_STORAGE_WORDS = ("used more storage than its own limit",)  # of launch.kubernetes.pod_exit
_STORAGE_WORDS = (
    "aws error", "no space left on device", "disk quota exceeded", "input/output error",
    "read-only file system", "object store full", "local disk is full", "(slowdown)", "stale file handle",
)  # fmt: skip
_STORAGE_TYPES = (
    "botocore.", "aiobotocore.", "s3fs.", "gcsfs.", "adlfs.", "azure.core.", "google.api_core.",
    "google.auth.", "pyarrow.lib.", "fsspec.", "ray.exceptions.OutOfDiskError",
    "StorageError",
)  # fmt: skip
_STORAGE_FRAMES = ("/ray/train/_internal/storage.py", "pyarrow/_fs.pyx", "pyarrow/_s3fs.pyx")

# Ray's own exceptions for a lost process or node; the message has the reason
_SYSTEM_TYPES = frozenset(
    "RayActorError ActorDiedError ActorUnavailableError WorkerCrashedError NodeDiedError "
    "LocalRayletDiedError OwnerDiedError ObjectLostError RaySystemError OutOfMemoryError "
    "ActorPlacementGroupRemoved TaskPlacementGroupRemoved ActorUnschedulableError "
    "TaskUnschedulableError".split()
)
_TAKEN_AWAY = frozenset({Cause.NODE_LOST, Cause.OUT_OF_MEMORY, Cause.STORAGE})
_ACTOR_WORDS = (
    "actor died", "actor is dead", "worker died", "worker process has died", "is unavailable",
)  # fmt: skip


def classify(text: str, *, type_name: str = "", iteration: int = 0) -> Failure:
    """Return why a trial failed, from Ray's text.

    Args:
        text: error.txt (its last failure counts), or the text of Ray's exception.
        type_name: Type of the exception, used if the text lacks it.
        iteration: Last reported iteration.
    """
    text = _last_failure(text)
    raised = _read_traceback(text)
    if raised is None:
        cause = _cause_of_system(text)
        if cause is Cause.UNKNOWN:
            cause = _cause_of_exception(type_name, text, [])
        message = next((line for line in text.splitlines() if line.strip()), "")
        return Failure(
            cause=cause, type=_short(type_name), message=_short(message), iteration=iteration
        )
    return Failure(
        cause=_cause_of_raised(raised),
        type=_short(raised.type or type_name),
        message=_short(raised.message),
        place=_place(raised.frames),
        iteration=iteration,
    )


def classify_exit(exit_code: int | None, message: str = "") -> Failure | None:
    """Return why a runner exited that left no outcome, from its exit code and message.

    Args:
        exit_code: Of the process, pod or job; negative or 128 + n for signal n; None if unknown.
        message: The reason that Ray or Kubernetes gives, or the last lines that the runner printed.

    Returns:
        None if it did not fail: it was refused, fenced, paused, or asked to stop and not by a lost node.
    """
    message = message[-_READ_LIMIT:]
    cause = _cause_of_system(message)
    was_evicted = exit_code == EXIT_INTERRUPTED and cause in _TAKEN_AWAY
    has_not_failed = exit_code in (EXIT_REFUSED, EXIT_FENCED, EXIT_INTERRUPTED, EXIT_PAUSED)
    if has_not_failed and not was_evicted:
        return None
    if cause in (Cause.UNKNOWN, Cause.ACTOR_DIED):
        cause = Cause.KILLED
    lines = [line for line in message.splitlines() if line.strip()]
    with_code = "without recording an outcome" if exit_code is None else f"with code {exit_code}"
    last_line = f": {lines[-1]}" if lines else ""
    return Failure(cause=cause, message=_short(f"the runner exited {with_code}{last_line}"))


class _Frame(NamedTuple):
    path: str
    line: str
    function: str


class _Raised(NamedTuple):
    type: str
    message: str
    frames: list[_Frame]


def _last_failure(text: str) -> str:
    """Return the text of the last failure, without colours; only both ends of a long one."""
    begin = text.rfind(f"\n{_NEW_FAILURE}") + 1
    block = text[begin:]
    if block.startswith(_NEW_FAILURE):
        block = block.partition("\n")[2]
    if len(block) > 2 * _READ_LIMIT:
        block = f"{block[:_READ_LIMIT]}\n{block[-_READ_LIMIT:]}"
    return _COLOUR.sub("", block)


def _read_traceback(text: str) -> _Raised | None:
    """Return the last exception of the text with its frames; None without a traceback."""
    found: _Raised | None = None
    frames: list[_Frame] = []
    for line in _lines(text):
        if frame := _FRAME.match(line):
            frames.append(_Frame(*frame.groups()))
        elif _begins_traceback(line):
            frames = []
        elif frames and (exception := _EXCEPTION.match(line)):
            # the next lines are the rest of its message, until a new traceback begins
            found, frames = _Raised(exception[1], exception[2] or "", frames), []
            # RayTaskError(X): ray::task(), its own frames follow
            if _begins_traceback(found.message):
                found = None
    if found is None and frames:
        return _Raised("", "", frames)  # truncated
    return found or _last_exception(text)


def _last_exception(text: str) -> _Raised | None:
    """Find an exception without frames: Ray hides its own."""
    if "ray::" not in text[:1000]:
        return None
    named = [match for line in _lines(text) if (match := _EXCEPTION.match(line))]
    errors = [match for match in named if match[2] is not None and "." in match[1]]
    return _Raised(errors[-1][1], errors[-1][2], []) if errors else None


def _begins_traceback(line: str) -> bool:
    return line.lstrip(" |+-").startswith(_NEW_TRACEBACK)


def _lines(text: str) -> Iterator[str]:
    """Yield the lines; a long one, longer than any pattern, without its middle."""
    return (shortened(line, 2000) for line in text.splitlines())


def _cause_of_raised(raised: _Raised) -> Cause:
    name = raised.type.rpartition(".")[2]
    if raised.type.startswith("ray.exceptions.") and name in _SYSTEM_TYPES:
        cause = _cause_of_system(f"{name} {raised.message}")
        return Cause.ACTOR_DIED if cause is Cause.UNKNOWN else cause
    return _cause_of_exception(raised.type, raised.message, raised.frames)


def _cause_of_exception(type_name: str, message: str, frames: list[_Frame]) -> Cause:
    if type_name.rpartition(".")[2] == "MemoryError":
        return Cause.OUT_OF_MEMORY
    if type_name.startswith(_STORAGE_TYPES) or _has(message, _STORAGE_WORDS):
        return Cause.STORAGE
    if any(part in frame.path for frame in frames for part in _STORAGE_FRAMES):
        return Cause.STORAGE
    return Cause.TRAINABLE if frames else Cause.UNKNOWN


def _cause_of_system(text: str) -> Cause:
    if _has(text, _MEMORY_WORDS) or text.startswith("OutOfMemoryError "):
        return Cause.OUT_OF_MEMORY
    if _has(text, _POD_STORAGE_WORDS):
        return Cause.STORAGE
    if _has(text, _NODE_WORDS) or text.startswith(("NodeDiedError ", "LocalRayletDiedError ")):
        return Cause.NODE_LOST
    return Cause.ACTOR_DIED if _has(text, _ACTOR_WORDS) else Cause.UNKNOWN


def _has(text: str, words: tuple[str, ...]) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in words)


def _place(frames: list[_Frame]) -> str:
    """Return the innermost frame of the user's code, or else of installed code."""
    if not frames:
        return ""
    users = [frame for frame in frames if not _INSTALLED.search(frame.path)]
    not_ray = [frame for frame in frames if not _RAY.search(frame.path)]
    frame = (users or not_ray or frames)[-1]
    return _short(f"{_short_path(frame.path)}:{frame.line} in {frame.function}")


def _short_path(path: str) -> str:
    """Return the end of a path, which is the same on every node: Ray unpacks code anywhere."""
    parts = path.replace("\\", "/").split("/")[-2:]
    if len(parts) == 2 and (parts[0].startswith("_ray_pkg_") or parts[0] == "tmp"):  # noqa: PLR2004
        parts = parts[1:]
    return "/".join(part for part in parts if part)


def _short(text: str) -> str:
    return printable(text, LINE_LENGTH).strip()
