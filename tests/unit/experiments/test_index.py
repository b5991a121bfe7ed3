"""The content of an index; a damaged index costs only the damaged rows."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.experiments import index as index_module
from airflow_tune_restore.experiments.index import (
    MAX_INDEX_BYTES,
    MAX_ROW_BYTES,
    MAX_ROWS,
    Index,
    build_row,
    encode_row,
    read_index,
)
from airflow_tune_restore.experiments.state_summary import StateSummary
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME
from tests.support.waiting import PATIENCE_SECONDS

MIB = 1024 * 1024
MARK = "f" * 64
FACTS = StateSummary(state_file=STATE_NAME, trials={"TERMINATED": 4}, samples_left=0)


@pytest.fixture(autouse=True)
def small_index(monkeypatch):
    monkeypatch.setattr(index_module, "MIN_ROWS", 1)


def line_of(path, summary, mark=MARK):
    """Return a line that is whole, whatever stands in it."""
    return encode_row(build_row(path, mark, summary))


def summary_of(**fields):
    """Return a summary as JSON, possibly an invalid one."""
    return json.dumps({"state_file": STATE_NAME, "trials": {"TERMINATED": 4}} | fields).encode()


def read(body):
    store = MemoryStore()
    store.put(layout.INDEX, body)
    return read_index(store)


texts = st.text(st.characters(codec="utf-8"), max_size=60)


@given(st.dictionaries(texts, st.tuples(texts, texts), max_size=20))
def test_what_was_remembered_is_read(rows):
    store, index = MemoryStore(), Index()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "MIN_ROWS", 1)
        for path, (mark, warning) in rows.items():
            summary = StateSummary(state_file=STATE_NAME, trials={"ERROR": 1}, warnings=(warning,))
            index.remember(path, mark, summary)
        index.write(store, was_complete=True)
    again = read_index(store)
    for path, (mark, warning) in rows.items():
        assert again.look_up(path, mark).warnings == (warning,)
        assert again.look_up(path, f"{mark}!") is None


def test_others_can_read_it():
    line = json.loads(line_of("team/sweep", summary_of()))
    assert (line["path"], line["summary"]["trials"]) == ("team/sweep", {"TERMINATED": 4})


DAMAGED = {
    "no JSON": b"{\n",
    "cut": line_of("bad", summary_of())[:-20] + b"\n",
    "another check": line_of("bad", summary_of()).replace(b"TERMINATED", b"ERROR"),
    "a list": b"[1, 2]\n",
    "no text": b"\xff\xfe\0\n",
    "a lone surrogate": b'{"path":"\\ud800","fingerprint":"","summary":{},"check":""}\n',
    "empty": b"\n",
    "nested": b"[" * 10_000 + b"\n",
    "nested summary": line_of("bad", b"[" * 7_000 + b"]" * 7_000),
    "too long": line_of("bad", summary_of(trainables=["x" * MAX_ROW_BYTES])),
    "a file of Parquet": b"PAR1" + bytes(range(256)) + b"PAR1\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_costs_its_own_row_alone(kind):
    index = read(line_of("one", summary_of()) + DAMAGED[kind] + line_of("two", summary_of()))
    assert index.look_up("bad", MARK) is None
    assert index.look_up("one", MARK).total == index.look_up("two", MARK).total == 4


HOSTILE_SUMMARIES = {
    "a number of 5,000 digits": summary_of().replace(b"4", b"4" * 5_000),
    "a number that no text can hold with another": summary_of(
        trials={"ERROR": "@", "TERMINATED": "@"}
    ).replace(b'"@"', b"9" * 4_300),
    "more trials than are counted": summary_of(trials={"TERMINATED": 2**53 + 1}),
    "more samples than are counted": summary_of(samples_left=2**53 + 1),
    "more ends than are counted": summary_of(ended_by={"itself": 2**53 + 1}),
    "no trials": summary_of(trials={}),
    "trials in many states": summary_of(trials={str(n): 1 for n in range(1_500)}),
    "an interval that never ends": summary_of(longest_interval="@").replace(b'"@"', b"1e999"),
    "a state elsewhere": summary_of(state_file="../experiment_state-x.json"),
    "directories elsewhere": summary_of(trials={"RUNNING": 1}, unfinished_dirs=[".."]),
    "more directories than trials": summary_of(unfinished_dirs=["a"]),
    "thousands of warnings": summary_of(warnings=["a"] * 3_000),
    "a trainable that is not a text": summary_of(trainables=["a\0"]),
    "a lone surrogate": summary_of(warnings=["\ud800"]),
    "NaN": summary_of(last_result=float("nan")),
    "a list": b"[]",
    "nothing": b"",
    "two lines": b'{"a":\n1}',
}
if sys.version_info < (3, 13):  # a newer one has room to skip it, as any unknown field
    HOSTILE_SUMMARIES["nested"] = summary_of(other="@").replace(b'"@"', b"[" * 7_000 + b"]" * 7_000)


@pytest.mark.parametrize("kind", HOSTILE_SUMMARIES)
def test_a_summary_that_no_state_could_give_is_ignored(kind):
    index = read(line_of("bad", HOSTILE_SUMMARIES[kind]) + line_of("good", summary_of()))
    assert index.look_up("bad", MARK) is None
    assert index.look_up("good", MARK).total == 4


def test_thousands_of_trainables_take_only_their_line():
    names = [f"t{n}" for n in range(1_500)]
    assert read(line_of("x", summary_of(trainables=names))).look_up("x", MARK).total == 4


def test_what_would_not_be_taken_is_not_remembered():
    index = Index()
    index.remember(
        "long", MARK, StateSummary(state_file=STATE_NAME, trials={}, unreadable="x" * 20_000)
    )
    index.remember("odd", MARK, StateSummary(state_file=STATE_NAME, trials={"ERROR": 2**60}))
    index.remember("good", MARK, FACTS)
    store = MemoryStore()
    index.write(store, was_complete=True)
    assert [json.loads(line)["path"] for line in store.get(layout.INDEX).splitlines()] == ["good"]


def test_rows_beyond_the_limit_are_not_read(monkeypatch):
    monkeypatch.setattr(index_module, "MAX_ROWS", 3)
    index = read(b"\n" + b"".join(line_of(f"e{n}", summary_of()) for n in range(3)))
    assert [index.look_up(f"e{n}", MARK) is not None for n in range(3)] == [True, True, False]


def test_an_index_that_is_longer_than_one_may_be_is_not_read(monkeypatch):
    monkeypatch.setattr(index_module, "MAX_INDEX_BYTES", 100)
    assert read(line_of("x", summary_of())).look_up("x", MARK) is None


def test_a_few_rows_replace_a_forged_index_but_make_none(monkeypatch):
    monkeypatch.setattr(index_module, "MIN_ROWS", 9)
    store = MemoryStore()
    Index().write(store, was_complete=True)
    assert layout.INDEX not in store._objects
    store.put(layout.INDEX, line_of("x", summary_of()))
    Index(replaces_forged=True).write(store, was_complete=False)
    assert store.get(layout.INDEX) == b""


WIDE = "\U0001f469" + "x" * 15_900
"""Python keeps four bytes of each letter of a text with one that needs them."""


def filled(summary, *, path="", mark=MARK):
    """Return as many whole lines as an index may hold."""
    limit = MAX_INDEX_BYTES // len(line_of(f"{path}{MAX_ROWS}", summary, mark))
    return b"".join(line_of(f"{path}{n}", summary, mark) for n in range(min(MAX_ROWS, limit)))


LARGE = {
    "rows, as many as may be": lambda: filled(summary_of(trainables=["x" * 400])),
    "rows, as large as may be": lambda: filled(summary_of(trainables=["x" * 16_000])),
    "rows of many small texts": lambda: filled(summary_of(trainables=["ab"] * 2_600)),
    "rows of many numbers": lambda: filled(
        summary_of(ended_by={f"{n:x}": 1 for n in range(1_500)})
    ),
    "rows with long paths of wide letters": lambda: filled(summary_of(), path=WIDE),
    "rows with long fingerprints of wide letters": lambda: filled(summary_of(), mark=WIDE),
    "empty lines": lambda: b"\n" * MAX_INDEX_BYTES,
    "one line": lambda: b"[" * MAX_INDEX_BYTES,
    "brackets": lambda: (b"[" * 600 + b"\n") * (MAX_INDEX_BYTES // 601),
}

MEASURE = """
import sys
from pathlib import Path
from airflow_tune_restore.experiments.index import read_index
from airflow_tune_restore.storage.local import LocalStore

def peak():
    # ru_maxrss of a child begins with that of its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

before = peak()
index = read_index(LocalStore(Path(sys.argv[1])))
for path, row in list(index._rows.items())[::40]:
    index.look_up(path, row.fingerprint)
print(len(index._rows), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak of a process")
@pytest.mark.parametrize("kind", LARGE)
def test_no_file_takes_more_than_a_few_times_the_most_bytes(kind, tmp_path):
    """Parquet of 381 bytes that claimed 10**9 empty texts took 7.7 GB."""
    body = LARGE[kind]()
    assert 0.9 * MAX_INDEX_BYTES < len(body) <= MAX_INDEX_BYTES
    (tmp_path / layout.ROOT).mkdir()
    (tmp_path / layout.INDEX).write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path.as_posix()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    rows, size_bytes = map(int, done.stdout.split())
    print(f"{kind}: {rows} rows, {size_bytes / MIB:.0f} MiB")
    assert (rows > 4_000) == ("rows" in kind)
    assert size_bytes < 7 * MAX_INDEX_BYTES
