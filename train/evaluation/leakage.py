"""Leakage: clips, and other clips of the same videos, that a model was both trained and scored on."""

from collections.abc import Collection
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import video_of
from avpipe.pipeline.manifest.tables import Manifest


def leakage(trained: Collection[str], scored: Collection[str]) -> dict[str, int]:
    """Return how many of the scored `clips`, and how many of their `videos`, were trained on."""
    return {"clips": len(set(trained) & set(scored)), "videos": len(_videos(trained) & _videos(scored))}


def leakage_into_tests(manifest: Path, trained: Collection[str]) -> dict[str, dict[str, int]]:
    """Return the `leakage` into each test split of the manifest that has any; {} without a manifest."""
    if not (manifest / "splits.parquet").exists():
        return {}
    tables = Manifest.open(manifest)
    tests = [split for split, role in tables.roles().items() if role == "test"]
    found = {split: leakage(trained, tables.split_ids(split)) for split in tests}
    return {split: counts for split, counts in found.items() if counts["clips"] or counts["videos"]}


def warn_or_refuse(what: str, leaks: dict[str, dict[str, int]], forbid: bool) -> str | None:
    """Return a warning about leaks, None if there are none; with `forbid` raise it as AvpipeError."""
    if not leaks:
        return None
    shown = [f"{split} ({n['clips']:,} clips, {n['videos']:,} videos)" for split, n in leaks.items()]
    text = f"{what} shares clips or videos with {', '.join(shown)}; scores on them say little about new clips"
    if forbid:
        raise AvpipeError(f"{text}. Leave them out with `avpipe manifest derive NAME --of SPLIT --without TEST`")
    return text


def _videos(clip_ids: Collection[str]) -> set[str]:
    return set(map(video_of, clip_ids))
