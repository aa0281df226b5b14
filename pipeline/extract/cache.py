"""The cache of extracted samples: immutable tars, each of which counts only once its index exists."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.parquet import read_facts, read_parquet

PART_NAME = re.compile(r"part-([0-9]{6})-[A-Za-z0-9_-]+\.(tar|parquet)", re.ASCII)
WHAT, FIX = "the index of a part of the cache", "remove it and run `avpipe extract` again"
INDEX_FIELDS = [pa.field(name, pa.string(), nullable=False) for name in ("clip_id", "source_sha256")]


def _schema(index: Path) -> pa.Schema:
    """The columns of a part's index, derived from its members; the same for all parts of a folder."""
    members = samples.index_members(read_facts(index, WHAT, FIX)[0])
    schema = samples.index_schema(members, INDEX_FIELDS[1:])
    return pa.schema([field.with_nullable(False) for field in schema])


@dataclass(frozen=True)
class Cache:
    """One folder of parts, all made with the same extraction settings."""

    folder: Path

    def indexes(self) -> list[Path]:
        """Indexes of the finished parts, oldest first."""
        return sorted(path for path in self.folder.glob("part-*.parquet") if PART_NAME.fullmatch(path.name))

    def next_number(self) -> int:
        """A part number greater than any used here so far: a later part supersedes the clips of earlier ones."""
        numbers = [int(m[1]) for path in self.folder.glob("part-*") if (m := PART_NAME.fullmatch(path.name))]
        return max(numbers, default=-1) + 1

    def remove_orphans(self) -> None:
        """Delete tars whose worker was killed before it wrote the index; the caller must hold the stage's lock."""
        indexed = {path.with_suffix(".tar") for path in self.indexes()}
        for tar in set(self.folder.glob("part-*.tar")) - indexed:
            tar.unlink()

    def sources(self) -> dict[str, str]:
        """SHA-256 of the source file of every clip in the cache."""
        sources = {}
        for path in self.indexes():
            table = read_parquet(path, pa.schema(INDEX_FIELDS), WHAT, FIX)
            sources.update(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))
        return sources

    @cached_property
    def table(self) -> pa.Table:
        """One row per clip: the columns of the index, and `part`, the path of its tar relative to the folder."""
        tables = []
        schema: pa.Schema | None = None
        for path in self.indexes():
            schema = schema or _schema(path)
            table = read_parquet(path, schema, WHAT, FIX)
            name = pa.array([path.with_suffix(".tar").name] * len(table), pa.string())
            tables.append(table.append_column("part", name))
        if not tables:
            siblings = (path for path in self.folder.parent.glob("*-*") if path.is_dir() and path != self.folder)
            others = sorted(path.name for path in siblings)
            there = f" (with other features there is: {', '.join(others)})" if others else ""
            raise AvpipeError(f"{self.folder}: nothing is extracted yet{there}; run `avpipe extract` first")
        table = pa.concat_tables(tables)
        last = {clip_id: row for row, clip_id in enumerate(table["clip_id"].to_pylist())}
        return table.take(list(last.values()))

    def read(self, rows: Iterable[dict], members: list[str]) -> Iterator[dict[str, bytes]]:
        """Yield the samples of some rows of `table`, in order, opening each tar once. Raises AvpipeError if damaged."""
        files = {}
        try:
            for row in rows:
                part = samples.check_tar_name(row["part"])
                if part not in files:
                    files[part] = self._open(part)
                yield samples.read_sample(files[part], row, members)
        finally:
            for file in files.values():
                file.close()

    def _open(self, part: str):
        try:
            return open(self.folder / part, "rb")
        except FileNotFoundError:
            index = (self.folder / part).with_suffix(".parquet")
            raise AvpipeError(
                f"{self.folder / part} is missing; remove {index.name} and run `avpipe extract`"
            ) from None
