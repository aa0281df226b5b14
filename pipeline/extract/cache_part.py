"""Writes one part of the cache: a tar of samples, a ledger row per clip tried, and the index that makes it count."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.core.ids import youtube_id
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.parquet import write_parquet
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.media import MediaError
from avpipe.pipeline.work.base import chunks
from avpipe.pipeline.work.run import FailedItem

# Clips per part: small enough that a kill costs seconds, large enough that 200,000 clips are 3,125 files.
CLIPS_PER_PART = 64


class Item(Protocol):
    """Something that a sample can be made from: a clip, or a frame and a sound."""

    clip_id: str
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A sample made from an item."""

    members: dict[str, bytes]
    source_sha256: str
    """SHA-256 of the file or files that it was made from."""
    note: str = ""
    """A remark for the ledger."""


def part_tasks(root: Root, settings: ExtractSettings, items: list[Item]) -> list[list[tuple]]:
    """Split `items` into parts, each a list of (root, settings, part number, item)."""
    first = Cache(root.cache / settings.name).next_number()
    return [
        [(root, settings, first + number, item) for item in part]
        for number, part in enumerate(chunks(items, CLIPS_PER_PART))
    ]


def record_failure(result: list[Outcome] | FailedItem, ledger: Ledger) -> list[Outcome]:
    """Return the outcomes of a part; an item that killed its workers gets its ledger row here."""
    if not isinstance(result, FailedItem):
        return result
    item = result.item[-1]
    lost = Outcome(clip_id=item.clip_id, reason=result.reason, detail=result.detail, attempts=item.attempts)
    ledger.write([lost])
    return [lost]


def write_part(
    root: Root,
    settings: ExtractSettings,
    number: int,
    items: Iterable[Item],
    make: Callable[[Item, ExtractSettings], Made],
) -> list[Outcome]:
    """Write one cache part, then its ledger rows, then its index, which makes it count.

    `make` raises MediaError for an unusable item; any error in it fails only that item. An error of the disk that the
    part is written to fails the part: none of it counts.
    """
    items = iter(items)
    first = next(items)
    # The first clip's id distinguishes the halves of a part that had to be split.
    tar = root.cache / settings.name / f"part-{number:06d}-{first.clip_id}.tar"
    outcomes, sources = [], []
    with atomic_write(tar) as temporary, samples.TarWriter(temporary) as writer:
        item: Item | None = first
        while item is not None:
            outcome, made = _try(item, for_clip(settings, item.clip_id), make)
            if made:
                outcome.sha256 = writer.add(item.clip_id, made.members)["sha256"]
                sources.append(made.source_sha256)
            outcomes.append(outcome)
            item = next(items, None)
    Ledger(root.ledger, f"extract-{settings.name}").write(outcomes)
    if writer.rows:
        _write_index(tar, writer.rows, sources, settings)
    else:
        tar.unlink()
    return outcomes


def for_clip(settings: ExtractSettings, clip_id: str) -> ExtractSettings:
    """The settings for one clip: a Flickr clip is its entire file, however long."""
    return settings if youtube_id(clip_id) else replace(settings, clip_s=math.inf)


def _try(item: Item, settings: ExtractSettings, make) -> tuple[Outcome, Made | None]:
    begin, made = time.monotonic(), None
    outcome = Outcome(clip_id=item.clip_id, attempts=item.attempts)
    try:
        made = make(item, settings)
        outcome.bytes, outcome.detail = sum(map(len, made.members.values())), made.note
    except MediaError as error:
        outcome.reason, outcome.detail = error.reason, error.detail
    except FileNotFoundError as error:
        outcome.reason, outcome.detail = "disk", f"{error.filename} is missing; download it again"
    except OSError as error:
        outcome.reason, outcome.detail = "disk", f"{error.filename}: {error.strerror}"
    except Exception as error:  # untrusted files reach untested corners of the decoders
        outcome.reason, outcome.detail = "unknown", repr(error)
    outcome.seconds = time.monotonic() - begin
    return outcome, made


def _write_index(tar, rows: list[dict], sources: list[str], settings: ExtractSettings) -> None:
    members = [samples.FRAME, samples.AUDIO, samples.META, *map(samples.feature_member, settings.features)]
    schema = samples.index_schema(members, [pa.field("source_sha256", pa.string())])
    table = pa.Table.from_pylist(
        [row | {"source_sha256": source} for row, source in zip(rows, sources, strict=True)], schema
    )
    write_parquet(table, tar.with_suffix(".parquet"))
