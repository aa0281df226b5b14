"""Parquet tables, written atomically with checksums, and read as untrusted input."""

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avpipe.pipeline.core.errors import AvpipeError, first_line
from avpipe.pipeline.core.files import atomic_write

# Our rows take more than a byte of the file; only rows that repeat each other take less.
VALUES_PER_BYTE = 1
# Real tables compress by a factor of 2 to 10.
UNPACKED_PER_BYTE = 100
# Below these sizes any ratio is harmless.
SMALL_VALUES, SMALL_BYTES = 2_000_000, 256_000_000
# What Arrow raises for an invalid file.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, NotImplementedError, OverflowError)


def write_parquet(table: pa.Table, path: Path, compression: str = "snappy") -> None:
    """Write a table atomically, with a checksum per page."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        pq.write_table(table, file, compression=compression, write_page_checksum=True)


def read_parquet(
    path: Path, schema: pa.Schema, what: str, fix: str, name: object = None, later: frozenset[str] = frozenset()
) -> pa.Table:
    """Read the columns of `schema` from an untrusted file; a field that is not nullable allows no null.

    Columns in `later` were added by later versions and are null in older files. Memory is limited to about a hundred
    times the file's size. Error messages contain `what` the file should be, such as `an index`, how to `fix` it, and
    `name` if `path` is only a copy. Raises AvpipeError for a file that is damaged, lacks a column, has one of another
    type, or unpacks to far more than its size; OSError for one that cannot be opened.
    """
    name = name or path
    with _open(path, name) as file, _explained(name, what, fix):
        whole = schema
        there = pq.ParquetFile(file).schema_arrow.names if later else ()
        schema = pa.schema([f for f in whole if f.name not in later or f.name in there])
        checked = _checked(file, schema)
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        # Dictionary-encoded strings take no more memory than in the file, however often one is repeated.
        options = {"read_dictionary": texts, "page_checksum_verification": True}
        table = pq.ParquetFile(file, metadata=checked.metadata, **options).read(schema.names, use_threads=False)
        for text in texts:
            _check_texts(table[text], _size(file))
        table = table.select(schema.names).cast(pa.schema([field.with_nullable(True) for field in schema]))
        table.validate(full=True)
        for field in schema:
            if not field.nullable and table[field.name].null_count:
                raise ValueError(f"{field.name} is empty in some rows")
        for field in whole:
            if field.name not in schema.names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return table.select(whole.names)


def read_facts(path: Path, what: str, fix: str, name: object = None) -> tuple[pa.Schema, dict[bytes, bytes]]:
    """Return (schema, metadata) of a file; raises the same errors as `read_parquet`."""
    name = name or path
    with _open(path, name) as file, _explained(name, what, fix):
        schema = pq.ParquetFile(file).schema_arrow
        return schema.remove_metadata(), schema.metadata or {}


def _open(path: Path, name: object) -> BinaryIO:
    # Opened by Python: Arrow cannot open paths that are not UTF-8.
    if not stat.S_ISREG(path.stat().st_mode):  # reading a fifo would block for ever
        raise AvpipeError(f"{name} is not a regular file; remove it")
    return open(path, "rb")


@contextmanager
def _explained(name: object, what: str, fix: str) -> Iterator[None]:
    """Turn what Arrow raises into a message; system errors, such as a missing permission, pass."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise AvpipeError(f"{name} is not {what}, or is damaged ({first_line(error)}); {fix}") from None


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _checked(file: BinaryIO, schema: pa.Schema) -> pq.ParquetFile:
    """Return the opened file if it has the columns of `schema` and plausible sizes."""
    table = pq.ParquetFile(file)
    for field in schema:
        places = table.schema_arrow.get_all_field_indices(field.name)
        if len(places) != 1:
            raise ValueError(f"it has {len(places) or 'no'} columns {field.name!r}")
        found = table.schema_arrow.field(places[0]).type
        if found != field.type:
            raise ValueError(f"{field.name} is of type {found} instead of {field.type}")
    size, facts = _size(file), table.metadata
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    values = max((group.column(n).num_values for group in groups for n in range(group.num_columns)), default=0)
    values = max(values, facts.num_rows)
    if values > SMALL_VALUES + VALUES_PER_BYTE * size:
        raise ValueError(f"{values:,} values in {size:,} bytes")
    unpacked = sum(group.total_byte_size for group in groups)
    if unpacked > SMALL_BYTES + UNPACKED_PER_BYTE * size:
        raise ValueError(f"{size:,} bytes that unpack to {unpacked:,}")
    return table


def _check_texts(column: pa.ChunkedArray, file_bytes: int) -> None:
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary).fill_null(0)
        total += pc.sum(pc.cast(lengths.take(chunk.indices), pa.int64())).as_py() or 0
    if total > SMALL_BYTES + UNPACKED_PER_BYTE * file_bytes:
        raise ValueError(f"{file_bytes:,} bytes whose texts unpack to {total:,}")


def column_sha256(column: pa.ChunkedArray) -> str:
    """Return the SHA-256 of a column's type and values (strings, numbers, lists, structs), not of their layout."""
    digest = hashlib.sha256()
    _feed(digest, pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type))
    return digest.hexdigest()


def _feed(digest, array: pa.Array) -> None:
    nested = pa.types.is_nested(array.type)  # the field name inside a list depends on how it was made
    digest.update(f"{'nested' if nested else array.type}:{len(array)}:".encode())
    if array.null_count:
        digest.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)))
    if pa.types.is_string(array.type):
        _feed(digest, pc.binary_length(array))
        whole = array.fill_null("")
        first, last = (np.frombuffer(whole.buffers()[1], np.int32)[whole.offset + at] for at in (0, len(whole)))
        if last > first:
            digest.update(memoryview(whole.buffers()[2])[first:last])
    elif pa.types.is_list(array.type):
        _feed(digest, pc.list_value_length(array))
        _feed(digest, array.flatten())
    elif pa.types.is_struct(array.type):
        for field in array.flatten():
            _feed(digest, field)
    else:
        digest.update(np.ascontiguousarray(array.fill_null(0).to_numpy(zero_copy_only=False)))
