"""Raw row -> `Trial`: only the fields that a plan needs are decoded.

A field that cannot be used costs its trial what the field was needed for, at worst that trial, never the
file: Ray reads the file, too.
"""

import math
from collections.abc import Collection
from typing import Any

import msgspec

from airflow_tune_restore.experiments.raw_row import (
    MalformedStateError,
    brief_metadata,
    decode_text,
    read_field,
)
from airflow_tune_restore.experiments.trial import Trial, TrialEnd, TrialStatus, follow_metric
from airflow_tune_restore.protocol import bounded_json, layout
from airflow_tune_restore.protocol.names import (
    is_key_name,
    is_safe_name,
    is_segment,
    is_trainable_name,
)
from airflow_tune_restore.protocol.numbers import is_amount, read_iteration, whole_iteration
from airflow_tune_restore.protocol.printable import printable

_UNREADABLE = "row-"
"""Starts the id of a trial whose row has no usable id; the number of the row follows."""

_DONE, _DONE_BYTES = b'\\n    \\"done\\": {', 300
_LAST_IS_TRUE = b'\\"last\\": true'
"""The analysis of `done`, a metric like any other to Ray, behind that."""


class _RowHead(msgspec.Struct):
    trial_id: str
    status: Any  # required
    trainable_name: Any = ""
    relative_logdir: Any = None
    stopping_criterion: Any = None


class _Iteration(msgspec.Struct):
    training_iteration: Any = 0  # the trainable's own metrics may have taken all three names
    time_this_iter_s: Any = None
    done: Any = None
    checkpoint_dir_name: Any = msgspec.UNSET


class _RunMetadata(msgspec.Struct):
    last_result: _Iteration | None = None
    last_result_time: Any = None
    start_time: Any = None


class _LastResult(msgspec.Struct):
    last_result: dict[str, Any]


_HEAD, _RUN = msgspec.json.Decoder(_RowHead), msgspec.json.Decoder(_RunMetadata)
_LAST = msgspec.json.Decoder(_LastResult)


def parse_row(trial: msgspec.Raw, metadata: msgspec.Raw, others: Collection[str]) -> Trial:
    """Return the trial of one row; an unusable row becomes a trial that cannot be run.

    `others` are the ids of the trials before it in the file.
    """
    try:
        found = _parse(trial, metadata)
        if found.trial_id in others:
            raise MalformedStateError(f"another trial has the id {found.trial_id!r}, too")
    except MalformedStateError as error:
        # the id is for display only: a later row that can be read may have the same
        named = read_field(trial, "trial_id")
        is_known = isinstance(named, str) and is_safe_name(named)
        return Trial(
            trial_id=f"{_UNREADABLE}{len(others) + 1}",
            trainable_name="",
            status=TrialStatus.ERROR,
            trial_dir=None,
            unusable=f"{error}; its trial_id is {named}" if is_known else str(error),
        )
    return found


def _parse(trial: msgspec.Raw, metadata: msgspec.Raw) -> Trial:
    head = decode_text(trial, _HEAD)
    trial_id = head.trial_id
    is_reserved = trial_id in layout.RUNS_OF_MANY or trial_id.startswith(_UNREADABLE)
    if is_reserved or not is_key_name(trial_id):
        raise MalformedStateError(f"trial id {trial_id[:80]!r} cannot be used")
    try:
        run, odd = decode_text(brief_metadata(metadata), _RUN), []
    except MalformedStateError:
        run, odd = _RunMetadata(), ["metadata"]
    # neither TERMINATED nor ERROR means unfinished (TuneController._requeue_restored_trials, 2.60)
    is_known = isinstance(head.status, str) and head.status in TrialStatus.__members__
    if not is_known:
        odd.append("status")
    last = run.last_result or _Iteration()
    if read_iteration(last.training_iteration) is None:
        odd.append("training_iteration")
    reported_at, started_at = _seconds(run.last_result_time), _seconds(run.start_time)
    directory, name = head.relative_logdir, head.trainable_name
    return Trial(
        trial_id=trial_id,
        trainable_name=name if _is_name(name) else "",
        status=TrialStatus(head.status) if is_known else TrialStatus.PENDING,
        trial_dir=directory if _is_directory(directory) else None,
        iteration=whole_iteration(last.training_iteration),
        last_result_time=-math.inf if reported_at is None else reported_at,
        start_time=started_at,
        last_interval=_seconds(last.time_this_iter_s) or 0.0,
        end=_read_end(head, last, metadata),
        unusable=_why_unusable(head),
        odd_fields=tuple(odd),
    )


def _why_unusable(head: _RowHead) -> str:
    """Return why a trial cannot be run although its row can be read; "" if it can be run."""
    if head.relative_logdir is not None and not _is_directory(head.relative_logdir):
        return f"its directory {_shown(head.relative_logdir)} leads outside or is not a name"
    if not _is_name(head.trainable_name):
        return f"the name of its trainable, {_shown(head.trainable_name)}, cannot be used"
    return ""


def _is_directory(value: Any) -> bool:
    return isinstance(value, str) and is_segment(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and is_trainable_name(value)


def _shown(value: Any) -> str:
    return (
        repr(printable(value, 80)) if isinstance(value, str) else f"of type {type(value).__name__}"
    )


def _seconds(value: Any) -> float | None:
    return float(value) if is_amount(value) else None


def _read_end(head: _RowHead, last: _Iteration, metadata: msgspec.Raw) -> TrialEnd | None:
    """Return what ended a TERMINATED trial, as far as its row shows it; None for any other trial."""
    if head.status != TrialStatus.TERMINATED:
        return None
    if last.done is not True:
        return TrialEnd.OUTSIDE
    if _meets(head.stopping_criterion, metadata):
        return TrialEnd.CRITERION
    if not _is_last_result_done(metadata):
        return TrialEnd.ITSELF
    # every result of a function has it (ray.train._internal.session._TrainSession.report, 2.60)
    is_function = last.checkpoint_dir_name is not msgspec.UNSET
    return TrialEnd.RESULT if is_function else TrialEnd.DONE


def _meets(criterion: Any, metadata: msgspec.Raw) -> bool:
    """Whether the last result meets one of the `stop` criteria (Trial.should_stop, 2.60)."""
    if not isinstance(criterion, dict) or not criterion:
        return False
    try:
        result = decode_text(brief_metadata(metadata), _LAST).last_result
    except MalformedStateError:
        return False
    met = [(follow_metric(result, name), limit) for name, limit in criterion.items()]
    return any(
        {type(value), type(limit)} <= {int, float} and value >= limit for value, limit in met
    )


def _is_last_result_done(metadata: msgspec.Raw) -> bool:
    """Whether `done` is true in the last logged result.

    Ray analyses each logged result (`Trial.update_last_result`, 2.60). It sets `done` in a result that a
    scheduler, a stopper or the trainable itself made the last. A function that returns has logged all
    its results before, and is marked done afterwards.
    """
    text = bytes(memoryview(metadata)[: bounded_json.MAX_DOCUMENT_BYTES])
    start = text.find(_DONE)
    return start >= 0 and _LAST_IS_TRUE in text[start : start + _DONE_BYTES]
