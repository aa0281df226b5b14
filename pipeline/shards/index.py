"""The index of shards, `index.parquet`: metadata about the split, and a row per sample.

The metadata contain checksums of the columns and of themselves, so that no flipped bit goes unnoticed; indexes of older
versions have none and are read without. An index is untrusted: its contents are checked here, once.
"""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import SPLIT_NAME
from avpipe.pipeline.core.parquet import column_sha256, read_facts, read_parquet, write_parquet
from avpipe.pipeline.manifest.tables import BOX_FIELDS

INDEX = "index.parquet"
METADATA_KEY = b"avpipe"
BOXES_TYPE = pa.list_(pa.struct(BOX_FIELDS))
EXTRA = [
    pa.field("shard", pa.string()),
    pa.field("label", pa.string()),
    pa.field("boxes", BOXES_TYPE),
]
WHAT, FIX = "an index of avpipe shards", "copy it again, or run `avpipe shard` again"
# Size of the metadata as JSON. A list of negatives is the largest item: about 60 bytes per pair.
MAX_METADATA_BYTES = 64_000_000
_FIELDS = {
    "split": str,
    "listed": int,
    "listed_sha256": str,
    "extract": dict,
    "shard": dict,
    "plan": str,
    "shards": list,
}
_SHARD_FIELDS = {"name": str, "samples": int, "bytes": int, "sha256": str}
_COLUMNS, _OWN = "columns_sha256", "metadata_sha256"


def write_index(path: Path, table: pa.Table, metadata: dict) -> None:
    """Write the rows and metadata of a split with their checksums."""
    metadata = metadata | {_COLUMNS: {name: column_sha256(table[name]) for name in table.column_names}}
    metadata |= {_OWN: _json_sha256(metadata)}
    text = json.dumps(metadata, sort_keys=True)
    write_parquet(table.replace_schema_metadata({METADATA_KEY: text}), path)


def _json_sha256(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_metadata(index: Path, address: str | None = None) -> dict:
    """Return what an index says about its split: list, settings, feature digests, shards with sizes and hashes.

    `address` is used in error messages if `index` is a local copy. Raises AvpipeError for a file that is not an index
    of this format.
    """
    name = address or index
    text = read_facts(index, WHAT, FIX, name)[1].get(METADATA_KEY, b"")
    try:
        if len(text) > MAX_METADATA_BYTES:
            raise ValueError
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise AvpipeError(f"{name} is not an index of avpipe shards, or is damaged; {FIX}") from None
    if not _is_sound(metadata):
        raise AvpipeError(f"{name} is not an index of format 1, which this avpipe reads; {FIX}")
    for shard in metadata["shards"]:
        samples.check_tar_name(shard["name"])
    return metadata


def read_rows(index: Path, address: str | None = None, without: tuple[str, ...] = ()) -> pa.Table:
    """Return a row per sample: clip_id, sha256, shard, label, boxes, offset and size of each member, except `without`.

    Raises AvpipeError for columns that are missing or of the wrong type, and for invalid shard names, boxes and
    offsets.
    """
    name = address or index
    members = samples.index_members(read_facts(index, WHAT, FIX, name)[0])
    if not members:
        raise AvpipeError(f"{name} names no members of samples; {FIX}")
    optional = {"label"}
    schema = [field.with_nullable(field.name in optional) for field in samples.index_schema(members, EXTRA)]
    wanted = pa.schema([field for field in schema if field.name not in without])
    table = read_parquet(index, wanted, WHAT, FIX, name)
    _check_values(table, members, name)
    return table


def read_clip_ids(index: Path) -> pa.ChunkedArray:
    """Return the clip ids of an index, of shards or of a part of the cache. Raises AvpipeError if it is damaged."""
    ids = pa.schema([pa.field("clip_id", pa.string(), nullable=False)])
    return read_parquet(index, ids, "an index", "remove it and run the stage again")["clip_id"]


def changes(metadata: dict, table: pa.Table) -> list[str]:
    """Return the columns that fail their checksum; [] for an index of an older version, which has none."""
    own, sums = metadata.get(_OWN), metadata.get(_COLUMNS, {})
    there = set(table.column_names) | {"sha256"}  # left out by readers of single samples
    found = sorted(sums.keys() - there)
    found += [
        column for column in table.column_names if column in sums and column_sha256(table[column]) != sums[column]
    ]
    if own is not None and own != _json_sha256({key: value for key, value in metadata.items() if key != _OWN}):
        found.append("the metadata")
    return found


def check_unchanged(metadata: dict, table: pa.Table, name: object) -> None:
    """Raise AvpipeError if the index called `name` fails its checksums."""
    if found := changes(metadata, table):
        raise AvpipeError(f"{name} is damaged, {found[0]} is not what was written; {FIX}")


def _check_values(table: pa.Table, members: list[str], name: object) -> None:
    for column in (f"{member}.{part}" for member in members for part in ("offset", "size")):
        found = pc.min_max(table[column]).as_py() if column in table.column_names else {"min": None}
        if found["min"] is not None and not 0 <= found["min"] <= found["max"] < 2**60:
            raise AvpipeError(f"{name} names places that no file has: {column} {found['min']} to {found['max']}; {FIX}")
    if "boxes" in table.column_names and _has_odd_boxes(table["boxes"]):
        raise AvpipeError(f"{name} has a box that lacks a corner or its annotator; {FIX}")
    for shard in pc.unique(table["shard"]).to_pylist():
        samples.check_tar_name(shard)


def _has_odd_boxes(column: pa.ChunkedArray) -> bool:
    """Whether any box is null, lacks a value, or has a corner that is not finite."""
    for boxes in (chunk.flatten() for chunk in column.chunks):
        fields = boxes.flatten()
        if boxes.null_count or any(field.null_count for field in fields):
            return True
        if any(pa.types.is_floating(f.type) and not pc.all(pc.is_finite(f)).as_py() for f in fields if len(f)):
            return True
    return False


def _is_sound(metadata: object) -> bool:
    """Whether the metadata have the fields of format 1, each of its type."""
    if not _has(metadata, _FIELDS) or metadata.get("format") != 1:
        return False
    if not SPLIT_NAME.fullmatch(metadata["split"]) or not all(_has(s, _SHARD_FIELDS) for s in metadata["shards"]):
        return False
    extract, sums = metadata["extract"], metadata.get(_COLUMNS, {})
    texts = [extract.get("features"), sums]
    if not all(isinstance(some, dict) and all(isinstance(text, str) for text in some.values()) for some in texts):
        return False
    return isinstance(extract.get("clip_s"), int | float) and _are_negatives(metadata.get("negatives"))


def _has(value: object, fields: dict[str, type]) -> bool:
    """Whether `value` is a dictionary with these fields, each of its type, counts non-negative."""
    return isinstance(value, dict) and all(
        type(value.get(name)) is kind and (kind is not int or 0 <= value[name] < 2**60) for name, kind in fields.items()
    )


def _are_negatives(value: object) -> bool:
    """Whether `value` has the form that `Manifest.negatives` returns."""
    if value is None:
        return True
    if not isinstance(value, dict) or not isinstance(value.get("pairs"), list):
        return False
    pairs = all(isinstance(pair, list) and len(pair) == 2 and {*map(type, pair)} == {str} for pair in value["pairs"])
    return pairs and isinstance(value.get("adds_to"), str | None)


# About 100 bytes per row: enough for ten million samples.
MAX_INDEX_BYTES = 1_000_000_000
