"""The door that Parquet tables pass: types, nulls, sizes and checksums, before anything is made of them."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.parquet import column_sha256, read_facts, read_parquet, write_parquet

SCHEMA = pa.schema([pa.field("clip_id", pa.string(), nullable=False), pa.field("size", pa.int64())])
TABLE = pa.table({"clip_id": ["a", "bé", ""], "size": [1, None, 2**40]}, SCHEMA)


def read(path):
    return read_parquet(path, SCHEMA, "a list", "make it again")


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(TABLE.replace_schema_metadata({"key": "value"}), path)
    assert read(path).to_pydict() == TABLE.to_pydict()
    assert read_facts(path, "a list", "")[1][b"key"] == b"value"
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (TABLE.drop_columns(["size"]), "it has no columns 'size'"),
        (TABLE.append_column("size", TABLE["size"]), "it has 2 columns 'size'"),
        (TABLE.set_column(1, "size", pa.array([1, 2, 3], pa.int32())), "size is of type int32 instead of int64"),
        (TABLE.set_column(0, "clip_id", pa.array([b"a", b"b", b"c"])), "clip_id is of type binary instead of string"),
        (TABLE.set_column(0, "clip_id", pa.array(["a", None, "c"])), "clip_id is empty in some rows"),
    ],
)
def test_another_table_is_a_sentence(tmp_path, table, why):
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(AvpipeError, match=rf"x\.parquet is not a list, or is damaged \({why}\); make it again"):
        read(tmp_path / "x.parquet")


def test_a_flipped_bit_in_a_page_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(pa.table({"clip_id": ["a" * 500], "size": [1]}, SCHEMA), path, compression="none")
    data = bytearray(path.read_bytes())
    data[data.index(b"aaaa") + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(AvpipeError, match="damaged"):
        read(path)


@pytest.mark.parametrize("rows", [3_000_000, 200])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before(tmp_path, rows):
    text = pa.array(["x" if rows > 1000 else "x" * 5_000_000]).take(pa.array([0]).take(pa.array([0] * rows)))
    pq.write_table(pa.table({"clip_id": text, "size": pa.nulls(rows, pa.int64())}), tmp_path / "x.parquet")
    with pytest.raises(AvpipeError, match=r"values in|unpack to"):
        read(tmp_path / "x.parquet")


def test_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "x.parquet")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(AvpipeError, match="not a regular file"):
        read(tmp_path / "fifo")


def test_the_hash_of_a_column_is_that_of_its_values():
    boxes = pa.list_(pa.struct([("who", pa.int32()), ("left", pa.float64())]))
    for values, kind in (
        (["a", None, "", "bc"], pa.string()),
        ([1, None, 3, 4], pa.int64()),
        ([[], [{"who": 1, "left": 0.5}], [{"who": 2, "left": 0.25}] * 2, []], boxes),
    ):
        whole = pa.chunked_array([pa.array(values, kind)])
        cut = pa.chunked_array([whole.chunk(0).slice(0, 1), whole.chunk(0).slice(1)])
        filtered = pa.chunked_array([pa.array([values[1], *values], kind)]).slice(1)
        assert column_sha256(whole) == column_sha256(cut) == column_sha256(filtered)
        others = [
            pa.chunked_array([pa.array(some, kind)]) for some in (values[::-1], values[:-1], [*values, values[0]])
        ]
        assert len({column_sha256(column) for column in [whole, *others]}) == 4
    assert column_sha256(pa.chunked_array([["ab", "c"]])) != column_sha256(pa.chunked_array([["a", "bc"]]))
