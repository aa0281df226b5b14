"""Compares shards with their index: missing, short, damaged, duplicated and unlisted samples, each by name."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.addresses import local_copy, names_at
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.shards.index import INDEX, MAX_INDEX_BYTES, changes, read_metadata, read_rows
from avpipe.pipeline.shards.verify_shard import Problem, ShardCheck, check_shard
from avpipe.pipeline.work.base import Executor
from avpipe.pipeline.work.run import FailedItem, run_parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a verification found."""

    samples: int
    shards: int
    listed: int
    """Clips in the split's list; clips that were never extracted are not counted as problems."""
    problems: list[Problem]

    def counts(self) -> dict[str, int]:
        """Problems by kind."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())


def verify(
    folder: str | Path,
    workers: int | Executor,
    on_plan: Callable[[int], None] = lambda samples: None,
    on_shard: Callable[[int], None] = lambda samples: None,
) -> Report:
    """Read every byte of the shards in `folder`, a path or any fsspec address, and compare with `index.parquet`.

    Raises AvpipeError when there is no readable index.
    """
    folder = str(folder).rstrip("/")
    names = names_at(folder)
    if INDEX not in names:
        raise AvpipeError(f"{folder} holds no {INDEX}; give the folder that `avpipe shard` wrote")
    with local_copy(f"{folder}/{INDEX}", MAX_INDEX_BYTES) as index:
        metadata, table = read_metadata(index, f"{folder}/{INDEX}"), read_rows(index, f"{folder}/{INDEX}")
    rows, members = table.to_pylist(), samples.index_members(table.schema)
    by_shard: dict[str, list[dict]] = {}
    for row in rows:
        by_shard.setdefault(row["shard"], []).append(row)
    on_plan(len(rows))
    problems = (
        _changed(metadata, table) + _index_problems(rows, metadata, by_shard) + _foreign_tars(names, metadata, by_shard)
    )
    checks = [
        ShardCheck(
            name=shard["name"],
            address=f"{folder}/{shard['name']}",
            size=shard["bytes"],
            sha256=shard["sha256"],
            rows=by_shard.get(shard["name"], []),
            members=members,
        )
        for shard in metadata["shards"]
    ]
    for result in run_parts(check_shard, [[check] for check in checks], workers):
        if isinstance(result, FailedItem):
            name = result.item.name
            detail = f"it could not be checked: {result.detail}"
            result = name, [Problem(kind="damaged", shard=name, clip_id="", detail=detail)]
        name, found = result
        problems += found
        on_shard(len(by_shard.get(name, [])))
    problems.sort(key=lambda p: (p.shard, p.clip_id, p.kind))
    return Report(samples=len(rows), shards=len(checks), listed=metadata["listed"], problems=problems)


def _changed(metadata: dict, table: pa.Table) -> list[Problem]:
    """Problems of the index's own checksums."""
    return [
        Problem(kind="damaged", shard=INDEX, clip_id="", detail=f"{part} is not what was written")
        for part in changes(metadata, table)
    ]


def _index_problems(rows: list[dict], metadata: dict, by_shard: dict[str, list[dict]]) -> list[Problem]:
    """Contradictions within the index."""
    problems = []
    for clip_id, count in Counter(row["clip_id"] for row in rows).items():
        if count > 1:
            shards = ", ".join(row["shard"] for row in rows if row["clip_id"] == clip_id)
            problems.append(Problem(kind="duplicated", shard="", clip_id=clip_id, detail=f"{count} rows: {shards}"))
    for shard in metadata["shards"]:
        found = len(by_shard.get(shard["name"], []))
        if found != shard["samples"]:
            detail = f"{found} rows in the index instead of {shard['samples']}"
            problems.append(Problem(kind="missing", shard=shard["name"], clip_id="", detail=detail))
    for name in by_shard.keys() - {shard["name"] for shard in metadata["shards"]}:
        detail = f"{len(by_shard[name])} rows name a shard that the index does not describe"
        problems.append(Problem(kind="missing", shard=name, clip_id="", detail=detail))
    return problems


def _foreign_tars(names: set[str], metadata: dict, by_shard: dict[str, list[dict]]) -> list[Problem]:
    """Tars that the index does not name; a reader of `*.tar` would read them too."""
    named = {shard["name"] for shard in metadata["shards"]} | by_shard.keys()
    foreign = {name for name in names if name.endswith(".tar")} - named
    detail = "the index does not name this tar"
    return [Problem(kind="unlisted", shard=name, clip_id="", detail=detail) for name in foreign]
