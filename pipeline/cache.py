"""The cache of extracted samples: immutable tars, each counted only when its index stands beside it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import samples
from pipeline.errors import AvpipeError

PART_NAME = re.compile(r"part-([0-9]{6})-[A-Za-z0-9_-]+\.(tar|parquet)", re.ASCII)


@dataclass(frozen=True)
class Cache:
    """One folder of parts, all made with the same extraction settings."""

    folder: Path

    def indexes(self) -> list[Path]:
        """Indexes of the finished parts, oldest first."""
        return sorted(path for path in self.folder.glob("part-*.parquet") if PART_NAME.fullmatch(path.name))

    def next_number(self) -> int:
        """A part number above all that were ever used here: a later part supersedes an earlier one's clips."""
        numbers = [int(m[1]) for path in self.folder.glob("part-*") if (m := PART_NAME.fullmatch(path.name))]
        return max(numbers, default=-1) + 1

    def remove_orphans(self) -> None:
        """Delete tars whose worker was killed before it wrote the index; call it only under the stage's lock."""
        indexed = {path.with_suffix(".tar") for path in self.indexes()}
        for tar in set(self.folder.glob("part-*.tar")) - indexed:
            tar.unlink()

    def sources(self) -> dict[str, str]:
        """SHA-256 of the source file of every clip in the cache."""
        sources = {}
        for path in self.indexes():
            table = pq.read_table(path, columns=["clip_id", "source_sha256"])
            sources.update(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))
        return sources

    @cached_property
    def table(self) -> pa.Table:
        """One row a clip: the columns of the index and `part`, the path of its tar relative to the folder."""
        tables = []
        for path in self.indexes():
            table = pq.read_table(path)
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
        """Samples by the rows of `table`, in their order; each tar is opened once. Raises AvpipeError on damage."""
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
            raise AvpipeError(f"{self.folder / part} is gone; remove {index.name} and run `avpipe extract`") from None
