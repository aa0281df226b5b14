"""Leaks: clips, and other clips of the same videos, that a model was trained on and is scored on."""

from collections.abc import Collection
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import video_of
from avpipe.pipeline.manifest.tables import Manifest


def leakage(trained: Collection[str], scored: Collection[str]) -> dict[str, int]:
    """{"clips": how many of the scored ones were trained on, "videos": how many of their videos}."""
    return {"clips": len(set(trained) & set(scored)), "videos": len(_videos(trained) & _videos(scored))}


def leakage_into_tests(manifest: Path, trained: Collection[str]) -> dict[str, dict[str, int]]:
    """`leakage` into every test split of the manifest where there is any; none where there is no manifest."""
    if not (manifest / "splits.parquet").exists():
        return {}
    tables = Manifest.open(manifest)
    tests = [split for split, role in tables.roles().items() if role == "test"]
    found = {split: leakage(trained, tables.split_ids(split)) for split in tests}
    return {split: counts for split, counts in found.items() if counts["clips"] or counts["videos"]}


def warn_or_refuse(what: str, leaks: dict[str, dict[str, int]], forbid: bool) -> str | None:
    """One sentence about leaks, or None; with `forbid` it is raised as AvpipeError."""
    if not leaks:
        return None
    shown = [f"{split} ({n['clips']:,} clips, {n['videos']:,} videos)" for split, n in leaks.items()]
    text = f"{what} shares clips or videos with {', '.join(shown)}; scores on them say little about new clips"
    if forbid:
        raise AvpipeError(f"{text}. Leave them out with `avpipe manifest derive NAME --of SPLIT --without TEST`")
    return text


def _videos(clip_ids: Collection[str]) -> set[str]:
    return set(map(video_of, clip_ids))
