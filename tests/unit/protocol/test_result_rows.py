"""Rows of `result.json`: whole lines are read, damaged and too large ones are skipped."""

import pytest

from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.result_rows import iter_rows, parse_row

GOOD = b'{"training_iteration": 1, "loss": NaN, "name": "a"}\n'


@pytest.mark.parametrize(
    "line", [b"\n", b"[1]\n", b'"text"\n', b"[" * 100_000 + b"\n", b'{"training_itera', b"\xff\n"]
)
def test_a_line_that_is_not_a_whole_row_is_skipped(line):
    rows = list(iter_rows(GOOD + line + b"\n" + GOOD))
    assert [row["name"] for row in rows] == ["a", "a"]


def test_a_line_separator_inside_a_text_does_not_end_a_row():
    assert [row["x"] for row in iter_rows('{"x": "a\u2028b"}\n'.encode())] == ["a\u2028b"]


def test_a_line_that_is_too_large_is_skipped(monkeypatch):
    monkeypatch.setattr(bounded_json, "MAX_DOCUMENT_BYTES", 100)
    large = b'{"name": "' + b"x" * 100 + b'"}\n'
    assert [row["name"] for row in iter_rows(large + GOOD)] == ["a"]


def test_only_the_wanted_fields_and_lines_are_kept():
    body = GOOD + b'{"other": 2}\n'
    assert list(iter_rows(body, fields=("name",), containing=b'"name"')) == [{"name": "a"}]
    assert list(iter_rows(body, fields=("name",))) == [{"name": "a"}, {}]


def test_one_line_is_a_row_or_none():
    assert parse_row('{"a": 1, "b": 2}', fields=("b",)) == {"b": 2}
    assert parse_row('{"a": 1') is None
