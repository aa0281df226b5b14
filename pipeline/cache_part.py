"""Writes one part of the cache: a tar of samples, the ledger rows of all that was tried, and the index that counts."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from pipeline import samples
from pipeline.cache import Cache
from pipeline.layout import Root, published, youtube_id
from pipeline.ledger import Ledger, Outcome
from pipeline.media import MediaError
from pipeline.parts import Lost, chunks
from pipeline.settings import ExtractSettings
from pipeline.tables import write_parquet

# Clips a part: small enough that a kill costs seconds, large enough that 200,000 clips are 3,125 files.
CLIPS_PER_PART = 64


class Item(Protocol):
    """Something that a sample is made of."""

    clip_id: str
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What became of an item."""

    members: dict[str, bytes]
    source_sha256: str
    """Of the file or files that it was made of."""
    note: str = ""
    """What a person may want to know of it."""


def part_tasks(root: Root, settings: ExtractSettings, items: list[Item]) -> list[list[tuple]]:
    """The parts that `items` make, each a list of (root, settings, number of the part, item)."""
    first = Cache(root.cache / settings.name).next_number()
    return [
        [(root, settings, first + number, item) for item in part]
        for number, part in enumerate(chunks(items, CLIPS_PER_PART))
    ]


def settle(result: list[Outcome] | Lost, ledger: Ledger) -> list[Outcome]:
    """The outcomes of a part; an item that no worker survived gets its row here."""
    if not isinstance(result, Lost):
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
    """One cache part, then its ledger rows, then its index, which makes it count.

    `make` raises MediaError for what cannot be used; any error of it costs its item alone. An error of the disk that
    the part is written to ends the part: nothing of it counts.
    """
    items = iter(items)
    first = next(items)
    # The first clip's id keeps the halves of a part apart, should a part have to be halved.
    tar = root.cache / settings.name / f"part-{number:06d}-{first.clip_id}.tar"
    outcomes, sources = [], []
    with published(tar) as temporary, samples.TarWriter(temporary) as writer:
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
    """The settings as they are for one clip: a Flickr clip is its whole file, however long."""
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
        outcome.reason, outcome.detail = "disk", f"{error.filename} is gone; fetch it again"
    except OSError as error:
        outcome.reason, outcome.detail = "disk", f"{error.filename}: {error.strerror}"
    except Exception as error:  # strangers' files reach corners of the decoders that nobody foresaw
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
