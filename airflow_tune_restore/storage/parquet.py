"""Tables of text as Parquet: how the index of a scan is kept. Needs pyarrow, imported when wanted."""

from collections.abc import Sequence
from io import BytesIO

from airflow_tune_restore.exceptions import StorageError

MAX_TABLE_BYTES = 256 * 1024 * 1024
"""What a table may say it holds when unpacked; a hundred bytes of Parquet can unpack to gigabytes."""

Table = dict[str, list[str]]


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
    parquet.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def decode_table(body: bytes, columns: Sequence[str]) -> Table:
    """Read columns of text.

    Raises:
        StorageError: If it is no such table, or unpacks to more than we read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(body))
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > MAX_TABLE_BYTES:
            raise StorageError(f"A table unpacks to more than {MAX_TABLE_BYTES} bytes.")
        table = file.read(columns=list(columns))
        found: Table = {name: table.column(name).to_pylist() for name in columns}
    except StorageError:
        raise
    except Exception as error:  # pyarrow raises a dozen kinds at a file that is none
        raise StorageError(f"A table cannot be read: {type(error).__name__}.") from error
    if not all(isinstance(value, str) for column in found.values() for value in column):
        raise StorageError("A table holds what is no text.")
    return found
