"""A runner's lines in the log of a task: their levels, and tracebacks that are folded."""

import pytest

from airflow_tune_restore.launch.runner_log import MOST_HELD, RunnerLog
from airflow_tune_restore.protocol.request import RunnerProgress
from tests.support import ROOT

RAISED = """\
2026-11-29 01:36:24,601\tERROR tune_controller.py:1336 -- Trial task failed for trial train_00001
Traceback (most recent call last):
  File "/v/lib/python3.11/site-packages/ray/air/execution/_internal/event_manager.py", line 110, in get
    result = ray.get(future)
             ^^^^^^^^^^^^^^^
ray.exceptions.RayTaskError(RuntimeError): \x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, ip=192.0.2.2)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/v/lib/python3.11/site-packages/ray/tune/trainable/trainable.py", line 329, in train
    raise skipped from exception_cause(skipped)
  File "/home/me/project/training.py", line 40, in step
    raise RuntimeError("out of luck")
RuntimeError: out of luck
and the second line of its message""".splitlines()


class Shown(list):
    """A log: the level and the text of each line."""

    def __getattr__(self, level):
        return lambda message, *values: self.append((level, message % values))


def shown(*lines: str) -> Shown:
    log = Shown()
    runner_log = RunnerLog(log, "score")
    runner_log.show_all(lines)
    runner_log.end()
    return log


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("2026-11-29 01:36:24,601\tERROR tune.py:1035 -- no", "error", "no"),
        ("2026-11-29 01:36:24,601 WARNING worker.py:1 -- slow", "warning", "slow"),
        ("\x1b[36m(f pid=3)\x1b[0m 2026-11-29 01:36:24,601\tINFO x.py:1 -- a", "info", "(f pid=3) a"),
        ("(raylet) [2026-11-29 01:36:24,601 E 12 13] (raylet) node.cc:7:  low", "error", "(raylet) low"),
        ("WARNING airflow_tune_restore.runner.attempt: Nothing is run.", "warning", "Nothing is run."),
        ("INFO airflow_tune_restore.runner.attempt: begun", "info", "begun"),
        ("WARNING my_lib.data: half", "warning", "my_lib.data: half"),
        ("WARNING:root:half", "warning", "root:half"),
        ("error: 0.125", "info", "error: 0.125"),
        ("ERRORS 12", "info", "ERRORS 12"),
        ("epoch 1 ::group::x ::endgroup::", "info", "epoch 1 :group::x :endgroup::"),
    ],
)  # fmt: skip
def test_a_line_has_one_level(line, level, text):
    assert shown(line) == [(level, text)]


def test_a_result_is_in_words():
    line = RunnerProgress(trial_id="t", iteration=4, metrics={"score": 0.5}).to_line()
    assert shown(line) == [("info", "iteration 4, score=0.5")]


def test_a_traceback_is_folded_below_its_exception_and_the_users_line():
    log = shown(*RAISED)
    assert log[:3] == [
        ("error", "Trial task failed for trial train_00001"),
        ("error", "RuntimeError: out of luck (at project/training.py:40 in step)"),
        ("info", "::group::Traceback of RuntimeError: out of luck"),
    ]
    assert log[-2:] == [("info", "and the second line of its message"), ("info", "::endgroup::")]
    assert [text for _, text in log].count("RuntimeError: out of luck") == 1
    assert all(level == "info" for level, _ in log[2:])


def test_a_traceback_that_a_warning_announced_is_a_warning():
    log = shown("WARNING mine: tried again", *RAISED[1:])
    assert log[1][0] == "warning"


@pytest.mark.parametrize("sample", ["nested", "raised", "memory", "oserror", "storage"])
def test_each_group_of_rays_own_texts_is_closed(sample):
    text = (ROOT / "tests/golden/errors" / f"{sample}.txt").read_text()
    texts = [text for _, text in shown(*text.splitlines())]
    opened = [text.startswith("::group::Traceback of ") for text in texts]
    assert sum(opened) == texts.count("::endgroup::") >= 1


OWN = ["Traceback (most recent call last):", '  File "/x/a.py", line 1, in a']


def test_tracebacks_of_two_processes_that_interleave_are_folded_apart():
    first = [f"(a pid=1) {line}" for line in (*OWN, "ValueError: one")]
    second = [f"(b pid=2) {line}" for line in (*OWN, "KeyError: two")]
    log = shown(*[line for pair in zip(first, second, strict=True) for line in pair], "(b pid=2) ")
    assert [text for level, text in log if level == "error"] == [
        "(a pid=1) ValueError: one (at x/a.py:1 in a)",
        "(b pid=2) KeyError: two (at x/a.py:1 in a)",
    ]
    texts = [text for _, text in log]
    assert texts[2:6] == [*OWN, "ValueError: one", "::endgroup::"]
    assert texts[8:12] == [*OWN, "KeyError: two", "::endgroup::"]


@pytest.mark.parametrize(
    "after",
    [
        "",
        "ERROR x.y: no",
        "(b pid=2) hi",
        RunnerProgress(trial_id="t", iteration=4, metrics={"score": 0.5}).to_line(),
        *OWN[:1],
    ],
)
def test_a_message_of_several_lines_stays_in_the_group_until_something_else_comes(after):
    texts = [text for _, text in shown(*OWN, "ValueError: one", "two", "  three", after)]
    assert texts[1:7] == [
        "::group::Traceback of ValueError: one",
        *OWN,
        "ValueError: one",
        "two",
        "  three",
    ]
    assert texts[7] == "::endgroup::"
    assert len(texts) == 9


def test_plain_lines_after_a_traceback_are_not_held_back_for_long():
    log = Shown()
    runner_log = RunnerLog(log)
    runner_log.show_all([*OWN, "ValueError: one", *["epoch"] * 30])
    assert log[-1] == ("info", "epoch")


def test_a_group_of_exceptions_is_folded():
    lines = [
        "  + Exception Group Traceback (most recent call last):",
        '  |   File "/x/a.py", line 1, in a',
        "  | ExceptionGroup: many (2 sub-exceptions)",
        "  +-+---------------- 1 ----------------",
        "    | Traceback (most recent call last):",
        '    |   File "/x/a.py", line 2, in b',
        "    | ValueError: 1",
        "    +------------------------------------",
    ]
    log = shown(*lines, "next")
    assert log[0][0] == "error"
    assert [text for _, text in log][2:] == [*lines, "::endgroup::", "next"]


def test_a_long_message_loses_its_middle():
    (_, header), *_ = shown(*OWN, f"ValueError: {'x' * 30_000} the end")
    assert " […] " in header
    assert header.endswith("the end (at x/a.py:1 in a)")


def test_no_line_can_open_or_close_a_group():
    hostile = [RAISED[1], RAISED[2], "    ::endgroup::", "ValueError: ::endgroup:: ::group::mine"]
    markers = [text for _, text in shown(*hostile) if "::group::" in text or "::endgroup::" in text]
    assert markers == ["::group::Traceback of ValueError: :endgroup:: :group::mine", "::endgroup::"]


def test_a_traceback_without_an_end_is_not_held_for_ever():
    log = Shown()
    runner_log = RunnerLog(log)
    runner_log.show_all([RAISED[1], *['  File "a.py", line 1, in a'] * MOST_HELD])
    assert len(log) > MOST_HELD


def test_a_word_that_only_looks_like_a_traceback_is_a_line():
    assert shown("ray::is fast", "next") == [("info", "ray::is fast"), ("info", "next")]
