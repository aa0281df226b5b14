"""Compares one shard with its rows of the index: the bytes of the tar, and what the index says about each sample."""

import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.addresses import TooLongError, local_copy
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import file_sha256
from avpipe.pipeline.shards.write import SHARD_S
from avpipe.pipeline.work.base import extend_deadline


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem of a folder of shards."""

    kind: str
    """missing, short, damaged, duplicated, unlisted, or differs: the index contradicts the tar."""
    shard: str
    clip_id: str
    """Empty if the problem concerns the entire shard."""
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCheck:
    """One shard to check, with what the index says about it."""

    name: str
    address: str
    """Path of the tar, or an address that fsspec opens."""
    size: int
    sha256: str
    rows: list[dict]
    members: list[str]


def check_shard(checks: list[ShardCheck]) -> tuple[str, list[Problem]]:
    """Return all problems of one shard; runs in a worker."""
    (check,) = checks
    extend_deadline(SHARD_S)
    try:
        with local_copy(check.address, check.size) as path:
            return check.name, _problems(check, path)
    except FileNotFoundError:
        return check.name, [Problem(kind="missing", shard=check.name, clip_id="", detail="the file is not there")]
    except TooLongError as error:
        return check.name, [Problem(kind="damaged", shard=check.name, clip_id="", detail=str(error))]


def _problems(check: ShardCheck, path: Path) -> list[Problem]:
    size = path.stat().st_size
    if size == check.size and file_sha256(path) == check.sha256:
        return _differences(check, path)  # the tar is intact, so only the index can be wrong
    problems = _sample_problems(check, path, size) + _stray_members(check, path)
    if not problems:
        detail = f"{size} bytes with another hash than the {check.size} that were written; all samples are intact"
        problems = [Problem(kind="damaged", shard=check.name, clip_id="", detail=detail)]
    return problems


def _differences(check: ShardCheck, path: Path) -> list[Problem]:
    """Rebuild each row from the tar, as `avpipe shard` would, and return what differs in the index."""
    try:
        there = _rows_of_tar(path)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        detail = f"its members cannot be read ({error})"
        return [Problem(kind="damaged", shard=check.name, clip_id="", detail=detail)]
    problems = []
    for row in check.rows:
        found = there.pop(row["clip_id"], None)
        if found is None:
            detail = "the index names a sample that the tar does not hold"
            problems.append(Problem(kind="missing", shard=check.name, clip_id=row["clip_id"], detail=detail))
            continue
        for name, value in found.items():
            if row.get(name) != value:
                detail = f"{name} is {value!r:.100}, by the index {row.get(name)!r:.100}"
                problems.append(Problem(kind="differs", shard=check.name, clip_id=row["clip_id"], detail=detail))
    detail = "the tar holds a sample that the index does not name"
    return problems + [Problem(kind="unlisted", shard=check.name, clip_id=clip, detail=detail) for clip in there]


def _rows_of_tar(path: Path) -> dict[str, dict]:
    """Index rows by clip id, rebuilt from a tar's members; label and boxes if its meta.json has them."""
    rows: dict[str, dict] = {}
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for clip_id, headers in groupby(tar, lambda header: header.name.partition(".")[0]):
            row, sample = rows.setdefault(clip_id, {}), {}
            for header in headers:
                name = header.name.partition(".")[2]
                if not header.isreg() or header.issparse():
                    raise ValueError(f"{header.name} is not a regular file")
                row |= {f"{name}.offset": header.offset_data, f"{name}.size": header.size}
                file.seek(header.offset_data)
                sample[name] = file.read(header.size)
            facts = json.loads(sample.get(samples.META, b"{}"))
            row |= {name: facts[name] for name in ("label", "boxes") if name in facts}
            row["sha256"] = samples.sample_sha256(sample)
    return rows


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
    """Samples that are in the tar twice, or have no row in the index."""
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
        pass  # an unreadable rest is reported sample by sample
    return names
