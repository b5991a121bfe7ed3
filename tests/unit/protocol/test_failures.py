"""Why a trial failed, told from Ray's real texts; and nothing that a text can do to us."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.protocol.failures import (
    Cause,
    Failure,
    classify,
    classify_exit,
)
from airflow_tune_restore.protocol.printable import is_printable
from airflow_tune_restore.protocol.record_fields import LINE_LENGTH
from tests.support import GOLDEN

UNPACKED = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg"
ERRORS = GOLDEN / "errors"  # written by Ray 2.60, but for the two of nodes: its words, put together


@pytest.mark.parametrize(
    ("name", "cause", "type_name", "place"),
    [
        ("raised", "trainable", "training.LossExploded", "project/training.py:8 in inner"),
        ("nested", "trainable", "RuntimeError", "project/training.py:27 in train"),
        ("setup", "trainable", "RuntimeError", "project/training.py:40 in setup"),
        ("oserror", "trainable", "FileNotFoundError", "project/training.py:23 in train"),
        ("memory", "out_of_memory", "MemoryError", "project/training.py:22 in train"),
        ("oom", "out_of_memory", "", ""),
        ("storage", "storage", "FileExistsError", "project/training.py:36 in train"),
        ("sigkill", "actor_died", "", ""),
        ("exit", "actor_died", "", ""),
        ("node_unavailable", "actor_died", "", ""),
        (
            "task_killed",
            "actor_died",
            "ray.exceptions.WorkerCrashedError",
            "project/training.py:28 in train",
        ),
        ("node_died", "node_lost", "", ""),
        ("node_preempted", "node_lost", "", ""),
    ],
)  # fmt: skip
def test_what_ray_writes_is_told_apart(name, cause, type_name, place):
    failure = classify((ERRORS / f"{name}.txt").read_text(), iteration=3)
    assert (failure.cause, failure.type, failure.place) == (cause, type_name, place)
    assert failure.message or type_name == "MemoryError"
    assert failure.iteration == 3


@pytest.mark.parametrize("version", ["2.40.0", "2.60.0"])
def test_both_ends_of_the_supported_versions_are_read(version):
    (path,) = (GOLDEN / f"ray-{version}").glob("killed/*/error.txt")
    assert classify(path.read_text()) == Failure(
        cause=Cause.TRAINABLE,
        type="RuntimeError",
        message="out of luck at iteration 3",
        place="golden/make_golden.py:34 in train",
    )


def test_the_last_failure_in_the_file_counts():
    first, last = ((ERRORS / f"{name}.txt").read_text() for name in ("raised", "oom"))
    assert classify(first + last).cause is Cause.OUT_OF_MEMORY
    assert classify(last + first).cause is Cause.TRAINABLE


def test_the_guess_about_the_oom_killer_proves_nothing():
    text = (ERRORS / "sigkill.txt").read_text()
    assert "OOM killer" in text
    assert classify(text).cause is Cause.ACTOR_DIED


@pytest.mark.parametrize(
    "words", ["the node died", "running low on memory", "preempted", "worker died", "evicted"]
)
def test_what_a_trainable_says_is_its_own(words):
    text = f'ray::train() (pid=1)\n  File "/home/u/p/t.py", line 3, in train\nValueError: {words}\n'
    assert classify(text).cause is Cause.TRAINABLE


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (f"{UNPACKED}_0a1b/train.py", "train.py:3 in f"),
        (f"{UNPACKED}_ff/pkg/train.py", "pkg/train.py:3 in f"),
        ("/home/me/project/train.py", "project/train.py:3 in f"),
    ],
)  # fmt: skip
def test_a_place_is_the_same_on_every_node(path, place):
    text = f'ray::f() (pid=1)\n  File "{path}", line 3, in f\n    raise X\nValueError: no\n'
    assert classify(text).place == place


def test_the_users_line_is_named_rather_than_the_library_it_calls():
    text = (
        "ray::f() (pid=1)\n"
        '  File "/venv/lib/python3.12/site-packages/ray/tune/trainable/trainable.py", line 9, in train\n'
        '  File "/app/model/train.py", line 12, in step\n'
        '  File "/venv/lib/python3.12/site-packages/torch/nn/functional.py", line 77, in linear\n'
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied\n"
    )
    assert classify(text).place == "model/train.py:12 in step"
    installed = text.replace("/app/model", "/venv/lib/python3.12/site-packages/model")
    assert classify(installed).place == "nn/functional.py:77 in linear"


def test_an_exception_group_is_named():
    text = (
        "ray::f() (pid=1)\n"
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/app/model/train.py", line 12, in step\n'
        "  |     raise ExceptionGroup\n"
        "  | ExceptionGroup: two of them (2 sub-exceptions)\n"
    )
    failure = classify(text)
    assert (failure.type, failure.place) == ("ExceptionGroup", "model/train.py:12 in step")


@pytest.mark.parametrize(
    "type_name", ["botocore.exceptions.ClientError", "pyarrow.lib.ArrowIOError"]
)
def test_a_stores_own_errors_are_told_by_their_type(type_name):
    text = f'ray::f() (pid=1)\n  File "/app/t.py", line 1, in f\n{type_name}: no such luck\n'
    assert classify(text).cause is Cause.STORAGE


def test_a_full_disk_is_a_matter_of_storage():
    error = "OSError: [Errno 28] No space left on device"
    text = f'ray::f() (pid=1)\n  File "/app/t.py", line 1, in f\n{error}\n'
    assert classify(text).cause is Cause.STORAGE


@pytest.mark.parametrize(
    ("code", "message", "cause"),
    [
        (-9, "", "killed"),
        (137, "", "killed"),
        (1, "some last line", "killed"),
        (None, "", "killed"),
        (137, "container runner: OOMKilled, exit code 137", "out_of_memory"),
        (None, "Evicted: The node was low on resource: memory.", "out_of_memory"),
        (None, "Preempting: the pod was preempted by a pod of higher priority", "node_lost"),
        (None, "Job supervisor actor died because its node has died.", "node_lost"),
    ],
)  # fmt: skip
def test_the_end_of_a_runner_that_said_nothing(code, message, cause):
    assert classify_exit(code, message).cause == cause


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_runner_that_was_refused_overtaken_or_stopped_did_not_fail(code):
    assert classify_exit(code) is None


LINES = st.sampled_from(
    ["Failure # 2 (occurred at x)", "ray::f() (pid=1)", '  File "/a/b.py", line 3, in f', "ValueError: x",
     "The above exception was the direct cause", "\x1b[36mray::f()\x1b[39m",
     "ray.exceptions.ActorDiedError: y",
     "  | X: 1", "    ^^^", 'File "' * 50, "a." * 500]
)  # fmt: skip


@given(st.lists(st.one_of(LINES, st.text(max_size=50))).map("\n".join), st.text(max_size=300))
def test_any_text_gives_a_short_printable_answer(text, type_name):
    failure = classify(text, type_name=type_name)
    end = classify_exit(1, text)
    assert failure.cause in set(Cause)
    for part in (failure.type, failure.message, failure.place, end.message):
        assert len(part) <= LINE_LENGTH
        assert is_printable(part)


@pytest.mark.parametrize("part", ["A", '  File "', "a.b", "\n", "a.b: c\n", "\x1b[36m"], ids=repr)
def test_a_huge_text_is_not_read_through(part):
    """What is looked at is copied first: lines are split off, letters made small, colours removed."""
    text = "ray::f()\n" + part * (HUGE // len(part)) + "\nValueError: x"
    for classifies in (classify, lambda text: classify_exit(1, text)):
        with copying_at_most(HUGE // 2):
            classifies(text)


HUGE = 10_000_000


@contextlib.contextmanager
def copying_at_most(size: int):
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= size
