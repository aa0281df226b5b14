"""Shards against their index: missing, short, damaged, duplicated and unlisted samples, each by name."""

import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import samples
from pipeline.errors import AvpipeError
from pipeline.executors import Executor, allow
from pipeline.layout import file_sha256
from pipeline.parts import Lost, run_parts
from pipeline.remote import local_copy, names_at
from pipeline.shard import INDEX, SHARD_S, read_metadata


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing wrong with a folder of shards."""

    kind: str
    """missing, short, damaged, duplicated or unlisted."""
    shard: str
    clip_id: str
    """Empty where the whole shard is meant."""
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a verification found."""

    samples: int
    shards: int
    listed: int
    """Clips in the split's list; those that were never extracted are no fault of the shards."""
    problems: list[Problem]

    def counts(self) -> dict[str, int]:
        """Problems by kind."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCheck:
    """One shard to check, with what the index says of it."""

    name: str
    address: str
    """Where its tar is: a path, or what fsspec opens."""
    size: int
    sha256: str
    rows: list[dict]
    members: list[str]


def verify(
    folder: str | Path,
    workers: int | Executor,
    on_plan: Callable[[int], None] = lambda samples: None,
    on_shard: Callable[[int], None] = lambda samples: None,
) -> Report:
    """Read every byte of the shards in `folder`, a path or any address of fsspec, and compare with `index.parquet`.

    Raises AvpipeError when there is no readable index.
    """
    folder = str(folder).rstrip("/")
    names = names_at(folder)
    if INDEX not in names:
        raise AvpipeError(f"{folder} holds no {INDEX}; give the folder that `avpipe shard` wrote")
    with local_copy(f"{folder}/{INDEX}") as index:
        metadata, table = read_metadata(index, f"{folder}/{INDEX}"), pq.read_table(index)
    rows, members = table.drop_columns(["boxes"]).to_pylist(), samples.index_members(table.schema)
    by_shard: dict[str, list[dict]] = {}
    for row in rows:
        by_shard.setdefault(samples.check_tar_name(row["shard"]), []).append(row)
    on_plan(len(rows))
    problems = _index_problems(rows, metadata, by_shard) + _foreign_tars(names, metadata, by_shard)
    checks = [
        ShardCheck(
            name=samples.check_tar_name(shard["name"]),
            address=f"{folder}/{shard['name']}",
            size=shard["bytes"],
            sha256=shard["sha256"],
            rows=by_shard.get(shard["name"], []),
            members=members,
        )
        for shard in metadata["shards"]
    ]
    for result in run_parts(check_shard, [[check] for check in checks], workers):
        if isinstance(result, Lost):
            name = result.item.name
            result = name, [Problem(kind="damaged", shard=name, clip_id="", detail=result.detail)]
        name, found = result
        problems += found
        on_shard(len(by_shard.get(name, [])))
    problems.sort(key=lambda p: (p.shard, p.clip_id, p.kind))
    return Report(samples=len(rows), shards=len(checks), listed=metadata["listed"], problems=problems)


def _index_problems(rows: list[dict], metadata: dict, by_shard: dict[str, list[dict]]) -> list[Problem]:
    """What the index contradicts in itself."""
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
    """Tars that the index does not name; a reader that takes `*.tar` would read them too."""
    named = {shard["name"] for shard in metadata["shards"]} | by_shard.keys()
    foreign = {name for name in names if name.endswith(".tar")} - named
    detail = "the index does not name this tar"
    return [Problem(kind="unlisted", shard=name, clip_id="", detail=detail) for name in foreign]


def check_shard(checks: list[ShardCheck]) -> tuple[str, list[Problem]]:
    """Run in a worker: all problems of one shard."""
    (check,) = checks
    allow(SHARD_S)
    try:
        with local_copy(check.address) as path:
            return check.name, _problems(check, path)
    except FileNotFoundError:
        return check.name, [Problem(kind="missing", shard=check.name, clip_id="", detail="the file is not there")]


def _problems(check: ShardCheck, path: Path) -> list[Problem]:
    size = path.stat().st_size
    if size == check.size and file_sha256(path) == check.sha256:
        return []  # the very bytes that were written
    problems = _sample_problems(check, path, size) + _stray_members(check, path)
    if not problems:
        detail = f"{size} bytes with another hash than the {check.size} that were written; all samples are intact"
        problems = [Problem(kind="damaged", shard=check.name, clip_id="", detail=detail)]
    return problems


def _sample_problems(check: ShardCheck, path: Path, size: int) -> list[Problem]:
    problems = []
    with open(path, "rb") as file:
        for row in check.rows:
            end = max(row[f"{name}.offset"] + row[f"{name}.size"] for name in check.members)
            found = None
            if end > size:
                found = "short", f"ends at byte {end}, the file has {size}"
            else:
                try:
                    samples.read_sample(file, row, check.members)
                except AvpipeError:
                    found = "damaged", "its bytes are not those that were written"
            if found:
                kind, detail = found
                problems.append(Problem(kind=kind, shard=check.name, clip_id=row["clip_id"], detail=detail))
    return problems


def _stray_members(check: ShardCheck, path: Path) -> list[Problem]:
    """Samples that stand in the tar twice, or without a row in the index."""
    listed = {row["clip_id"] for row in check.rows}
    problems = []
    for member, count in Counter(_member_names(path)).items():
        clip_id, _ = samples.split_member_name(member) or (member, "")
        if clip_id not in listed:
            detail = f"member {member!r} belongs to no row of the index"
            problems.append(Problem(kind="unlisted", shard=check.name, clip_id=clip_id, detail=detail))
        elif count > 1:
            detail = f"member {member} stands {count} times in the tar"
            problems.append(Problem(kind="duplicated", shard=check.name, clip_id=clip_id, detail=detail))
    return problems


def _member_names(path: Path) -> list[str]:
    names = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                names.append(member.name)
    except (tarfile.TarError, EOFError):
        pass  # what cannot be read on is reported sample by sample
    return names
