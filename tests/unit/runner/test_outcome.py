"""What the outcome of an attempt holds of its trial."""

import json
from types import SimpleNamespace

from airflow_tune_restore.protocol.request import Result, RunnerOutcome, RunnerRequest
from airflow_tune_restore.runner.outcome import (
    Ending,
    build_outcome,
    error_of,
    find_raised,
    scalar_metrics,
)
from tests.support import GOLDEN

ERRORS = GOLDEN / "errors"


def trial(error=None, text=""):
    return SimpleNamespace(get_pickled_error=lambda: error, get_error=lambda: text)


def test_the_cause_inside_rays_error_is_named():
    wrapped = RuntimeError("ray::train() raised")
    wrapped.cause = ValueError("bad shape\nand more")
    assert error_of(trial(wrapped)) == ("ValueError", "bad shape")


def test_rays_own_errors_are_named_by_their_type():
    assert error_of(trial(MemoryError("no memory"))) == ("MemoryError", "no memory")


def test_an_error_without_a_pickle_is_the_last_line_of_its_text():
    assert error_of(trial(text="Traceback\n\nlost: it")) == ("Error", "lost: it")


def test_the_metric_comes_first_and_only_numbers_are_taken():
    result = {"a": 1, "loss": 0.5, "config": {"x": 1}, "name": "x", "pid": 7, "flag": True}
    assert list(scalar_metrics(result, "loss").items()) == [("loss", 0.5), ("a", 1), ("flag", True)]


def test_a_metric_may_be_nested_and_has_rays_flat_name():
    result = {"val": {"loss": 0.5}, "a": 1}
    assert scalar_metrics(result, "val/loss") == {"val/loss": 0.5, "a": 1}
    assert scalar_metrics(result, "val/other") == {"a": 1}
    assert scalar_metrics(result, "val") == {"a": 1}


REQUEST = RunnerRequest(
    experiment="/e", restore_id="r", trial_id="t", attempt=1, trainable="m:t",
    trainable_name="t", action="resume",
)  # fmt: skip


def outcome(result, error, text="", failing=False):
    def get_error():
        if failing:
            raise OSError("no answer")
        return text

    ended = SimpleNamespace(
        get_error=get_error,
        run_metadata=SimpleNamespace(last_result={"training_iteration": 3}),
        status="ERROR",
        trial_id="t",
    )
    return build_outcome(REQUEST, Ending(result, *error), trial=ended, started_at="")


def test_cause_and_place_come_from_rays_text():
    text = (ERRORS / "raised.txt").read_text()
    record = outcome(Result.FAILED, ("LossExploded", "loss is nan"), text)
    assert (record.cause, record.place) == ("trainable", "project/training.py:8 in inner")
    assert RunnerOutcome.from_json(record.to_json()) == record


def test_without_the_text_the_exception_must_do():
    assert outcome(Result.FAILED, ("MemoryError", "no"), failing=True).cause == "out_of_memory"


def test_a_runner_that_could_not_go_on_says_why_and_one_that_was_stopped_does_not():
    assert outcome(Result.INTERRUPTED, ("StorageError", "no answer")).cause == "storage"
    assert outcome(Result.INTERRUPTED, ("Interrupted", "stopped")).cause == ""
    assert outcome(Result.FINISHED, ("", "")).cause == ""


def test_a_trial_without_room_has_a_cause_of_its_own_whatever_its_name_is():
    error = ("NoRoomError", "Trial spot_instance_preempted asks for CPU 64")
    for result in (Result.INTERRUPTED, Result.REFUSED):
        assert outcome(result, error).cause == "no_room"
    # a trainable may raise what it likes
    assert outcome(Result.FAILED, ("NoRoomError", "mine")).cause != "no_room"


def test_an_outcome_of_an_older_runner_is_read():
    record = outcome(Result.FINISHED, ("", ""))
    older = json.loads(record.to_json())
    del older["cause"], older["place"]
    assert RunnerOutcome.from_json(json.dumps(older)) == record


def test_the_error_of_a_callback_is_found_once_below_rays_copies_of_its_traceback():
    class TuneError(Exception):
        """Ray's name."""

    error: Exception = ValueError("mine")
    for _ in range(2):
        try:
            try:
                raise error
            except type(error) as inner:
                raise TuneError(f"Traceback …\n{inner}")  # noqa: B904  as Ray does
        except TuneError as outer:
            error = outer
    assert repr(find_raised(error)) == "ValueError('mine')"
