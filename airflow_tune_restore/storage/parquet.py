"""Tables of text as Parquet: how the index of a scan is kept. Needs pyarrow, imported when wanted.

Anybody who can write to the prefix can write such a table, and Parquet has many ways to say much in few
bytes: packed pages, dictionaries, shared prefixes, runs. What they come to is not known before they are
decoded, for the footer may lie. So tables are kept unpacked, where nothing is longer than the file, and
are decoded a few rows at a time, until there is more than we read.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from airflow_tune_restore.exceptions import StorageError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MAX_TABLE_BYTES = 128 * 1024 * 1024
"""Of texts, once decoded."""

Table = dict[str, list[str]]

_ROWS_AT_ONCE = 4
"""They take as often the length of the file at most, before they are looked at."""

_FOOTER_LIMITS = {"thrift_string_size_limit": 4096, "thrift_container_size_limit": 1024}
"""A footer is read before anything of it is seen. Ours names few columns, and a group a million rows."""


def is_available() -> bool:
    """Whether pyarrow is installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def encode_table(table: Table) -> bytes:
    """Write columns of text, all of one length."""
    import pyarrow as pa
    from pyarrow import parquet

    buffer = BytesIO()
    columns = {name: pa.array(values, pa.string()) for name, values in table.items()}
    parquet.write_table(pa.table(columns), buffer, compression="none")
    return buffer.getvalue()


def decode_table(body: bytes, columns: Sequence[str], *, max_rows: int) -> Table:
    """Read columns of text.

    Raises:
        StorageError: If it is no such table, has more rows, or holds more than we read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _decode(
            parquet.ParquetFile(pa.BufferReader(body), **_FOOTER_LIMITS), columns, max_rows
        )
    except StorageError:
        raise
    except Exception as error:  # pyarrow raises a dozen kinds at a file that is none
        raise StorageError(f"A table cannot be read: {type(error).__name__}.") from error


def _decode(file: "ParquetFile", columns: Sequence[str], max_rows: int) -> Table:
    import pyarrow as pa

    if not all(file.schema_arrow.field(name).type == pa.string() for name in columns):
        raise StorageError("A table holds what is no text.")
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    if any(chunk.compression != "UNCOMPRESSED" for chunk in chunks):
        raise StorageError("A table is packed, as ours are not.")
    found: Table = {name: [] for name in columns}
    rows = size_bytes = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(columns), use_threads=False):
        rows, size_bytes = rows + batch.num_rows, size_bytes + batch.nbytes
        if rows > max_rows or size_bytes > MAX_TABLE_BYTES:
            raise StorageError(f"A table has more than {max_rows} rows or {MAX_TABLE_BYTES} bytes.")
        for name in columns:
            if batch.column(name).null_count:
                raise StorageError("A table holds what is no text.")
            found[name] += batch.column(name).to_pylist()
    return found
