"""Tables of text: what was written is read, and nothing that says much in few bytes is unpacked."""

import tracemalloc
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.experiments.index import read_index
from airflow_tune_restore.experiments.layout import INDEX
from airflow_tune_restore.storage import parquet
from airflow_tune_restore.storage.memory import MemoryStore

NAMES = ("path", "fingerprint", "facts", "check")
MIB = 1024 * 1024
ROWS = 140
"""Of one MiB in each of four columns: more than may be taken."""

rows = st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"))] * 2), max_size=20)


@given(rows)
def test_what_was_written_is_read(rows):
    table = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    body = parquet.encode_table(table)
    assert parquet.decode_table(body, ["b", "a"], max_rows=20) == table


def test_others_can_read_it():
    from pyarrow import parquet as theirs

    body = parquet.encode_table({"a": ["x", "é"], "b": ["", "y"]})
    assert theirs.read_table(BytesIO(body)).to_pydict() == {"a": ["x", "é"], "b": ["", "y"]}


def test_more_rows_than_are_wanted_are_refused():
    body = parquet.encode_table({"a": ["x"] * 11})
    with pytest.raises(StorageError, match="more than 10 rows"):
        parquet.decode_table(body, ["a"], max_rows=10)


def test_a_column_that_is_missing_is_no_empty_one():
    with pytest.raises(StorageError, match="cannot be read"):
        parquet.decode_table(parquet.encode_table({"a": ["x"]}), ["a", "b"], max_rows=10)


@given(st.binary(max_size=40), st.integers(0, 400), st.integers(1, 40))
def test_damage_is_an_error_of_ours_or_another_text(noise, at, removed):
    body = parquet.encode_table({"a": ["one", "two", "three"], "b": ["x", "y", "z"]})
    damaged = body[:at] + noise + body[at + removed :]
    try:
        table = parquet.decode_table(damaged, ["a", "b"], max_rows=10)
    except StorageError:
        return
    assert all(isinstance(text, str) for column in table.values() for text in column)


def written(columns, **options):
    """Return what pyarrow makes of columns, all alike."""
    import pyarrow as pa
    from pyarrow import parquet as theirs

    buffer = BytesIO()
    theirs.write_table(pa.table(dict.fromkeys(NAMES, columns)), buffer, **options)
    return buffer.getvalue()


def repeated(**options):
    """Return a table of one long value, many times in each column."""
    import pyarrow as pa

    once = pa.array(["x" * MIB])
    return written(pa.DictionaryArray.from_arrays(pa.array([0] * ROWS), once), **options)


def wide():
    """Return a table whose footer is all there is of it."""
    import pyarrow as pa
    from pyarrow import parquet as theirs

    buffer = BytesIO()
    theirs.write_table(pa.table({name: [""] for name in map(str, range(20_000))}), buffer)
    return buffer.getvalue()


def plain(value, **options):
    options = {"use_dictionary": False, "compression": "zstd", **options}
    return written([value] * ROWS, **options)


BOMBS = {
    "a dictionary": lambda: repeated(compression="zstd"),
    "a dictionary that is not packed": lambda: repeated(compression="none"),
    "a dictionary that nobody tells of": lambda: repeated(compression="none", store_schema=False),
    "packed pages": lambda: plain("x" * MIB),
    "shared prefixes": lambda: plain(
        "x" * MIB, column_encoding="DELTA_BYTE_ARRAY", compression="none"
    ),
    "pages of the second version": lambda: plain("x" * MIB, data_page_version="2.0"),
    "packed pages that are few": lambda: plain("x" * MIB, compression="gzip"),
    "nulls": lambda: written([None] * 2_000_000),
    "lists": lambda: written([["x" * 100] * 10_000] * ROWS),
    "lists in lists": lambda: written([[[["x"] * 10_000]]] * ROWS),
    "structs": lambda: written([{"a": "x" * MIB}] * ROWS),
    "many columns": wide,
    "numbers": lambda: written([7] * 2_000_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_what_says_much_in_few_bytes_is_refused_before_it_is_unpacked(kind):
    """Dictionary-encoded, 600 rows of one MiB were a file of 1.5 KB, and took 2.6 GB to read."""
    import pyarrow as pa

    body = BOMBS[kind]()
    assert len(body) < 5 * MIB
    store = MemoryStore()
    store.put(INDEX, body)
    arrows, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(arrows)
    tracemalloc.start()
    try:
        with pytest.raises(StorageError):
            parquet.decode_table(body, NAMES, max_rows=100_000)
        peak = tracemalloc.get_traced_memory()[1] + arrows.max_memory()
        assert read_index(store).look_up("x" * MIB, "x" * MIB) is None
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert peak < 4 * parquet.MAX_TABLE_BYTES
