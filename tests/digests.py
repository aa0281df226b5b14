"""Digests of files and of what commands print, without what is of the moment; for tests/same_results.py."""

import csv
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

# Of the machine and the moment: how long something took, how fast it was, when it was done, how full the disk is.
OF_THE_MOMENT = {
    "seconds", "clips_per_s", "data_wait", "per_hour", "last_at", "hours_left", "free_bytes", "runtime", "finished_at",
    # Versions are no results, and the address of a source can be an absolute path.
    "tool_version", "versions", "source",
}  # fmt: skip


def flat(key: str, value: object) -> dict[str, object]:
    """Nested values as one dictionary, so that a comparison names the very number that differs."""
    if not isinstance(value, dict | list) or not value:
        return {key: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for name, some in pairs:
        if name not in OF_THE_MOMENT:
            found |= flat(f"{key} / {name}", some)
    return found


def digest(path: Path) -> object:
    """SHA-256 of a file; of tables that of each column, of checkpoints that of their values, of a log the losses."""
    if path.suffix == ".pt":
        return sha256("\n".join(tensors(torch.load(path, map_location="cpu"))))
    if path.suffix == ".parquet" and path.name != "index.parquet":
        return columns(read_table(path))
    if path.name == "log.csv":
        with open(path, newline="") as file:
            return [row["loss"] for row in csv.DictReader(file)]
    return sha256(path.read_bytes())


def sha256(data: bytes | str) -> str:
    """SHA-256 of bytes or a text, in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def read_table(path: Path) -> pa.Table:
    """A table without the columns that are of the moment."""
    table = pq.read_table(path)
    return table.select([name for name in table.column_names if name not in OF_THE_MOMENT])


def columns(table: pa.Table) -> dict[str, str]:
    """SHA-256 of each column, and of what the file says of itself."""
    found = {name: sha256(repr((str(table[name].type), table[name].to_pylist()))) for name in table.column_names}
    return found | {"metadata": sha256(repr(table.schema.metadata))}


def tensors(value: object, name: str = "") -> Iterator[str]:
    """A line for each value in a checkpoint."""
    if isinstance(value, dict | list | tuple):
        for key, some in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in OF_THE_MOMENT:
                yield from tensors(some, f"{name}/{key}")
    elif isinstance(value, torch.Tensor):
        data = value.contiguous().numpy().tobytes()
        yield f"{name} {value.dtype} {tuple(value.shape)} {sha256(data)}"
    else:
        yield f"{name} {value!r}"


def compare(before: Path, after: Path) -> int:
    """Print what differs; returns how many keys do."""
    one, other = (json.loads(path.read_text()) for path in (before, after))
    keys = [key for key in one | other if one.get(key, "nothing") != other.get(key, "nothing")]
    for key in keys:
        print(f"{key}\n  - {one.get(key, 'nothing')}\n  + {other.get(key, 'nothing')}")
    print(f"{len(keys)} of {len(one | other):,} differ", file=sys.stderr)
    return len(keys)
