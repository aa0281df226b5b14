"""Derived splits by reproducible rules: a list without another one, a subset, a held-out part."""

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.core.ids import check_split_name, ids_sha256, video_of
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.manifest.catalogue import load_catalogue
from avpipe.pipeline.manifest.tables import SPLITS, Manifest, write_table

# Next to the tables: {name: rule}, in order of creation. `manifest build` rebuilds these splits from it.
RULES = "derived.json"


def derive(
    manifest: Manifest,
    name: str,
    base: str,
    without: tuple[str, ...] = (),
    clips: int | None = None,
    whole_videos: bool = False,
    seed: int = 0,
) -> dict:
    """Add split `name` to the manifest: the rows of `base` in their order, minus some.

    Clips of `without` and all other clips of the same videos are left out. Of the rest, the `clips` whose id (with
    `whole_videos`, whose video's id) has the smallest hash under `seed` are kept: a smaller subset is contained in a
    larger one, and the order of the list does not matter. Whole videos are taken until there are enough clips.
    Returns the facts of the new split. Raises AvpipeError if the name is taken, a split is unknown, or too few clips
    are left.
    """
    check_split_name(name)
    rule = {"base": base, "without": sorted(without), "clips": clips, "whole_videos": whole_videos, "seed": seed}
    with manifest_lock(manifest.folder):
        return _derive(manifest, name, rule)


def manifest_lock(folder: Path) -> AbstractContextManager[None]:
    """Lock the tables while they change; removes the leftovers of a killed change."""
    return stage_lock(folder, "a change of the manifest", clean=True)


def _derive(manifest: Manifest, name: str, rule: dict) -> dict:
    """Implement `derive`; the caller holds the lock."""
    base, clips = rule["base"], rule["clips"]
    rules = read_rules(manifest)
    if name in load_catalogue()[1] or rules.get(name, rule) != rule:
        raise AvpipeError(f"split {name!r} already exists, made by another rule; choose another name")
    rows = _without(manifest, manifest.rows(base), rule["without"])
    if clips is not None:
        rows = _subset(rows, clips, rule["whole_videos"], rule["seed"], base)
    if not len(rows):
        raise AvpipeError(f"no clip of {base} is left; leave out less")
    with atomic_write(manifest.folder / RULES) as temporary:
        temporary.write_text(json.dumps(rules | {name: rule}, indent=1))
    return _append(manifest, name, rows, rule)


def read_rules(manifest: Manifest) -> dict[str, dict]:
    """Return the rules of all derived splits, by name. Raises AvpipeError for a foreign file."""
    path = manifest.folder / RULES
    try:
        rules = json.loads(path.read_text())
        return {check_split_name(name): dict(rule) for name, rule in rules.items()}
    except FileNotFoundError:
        return {}
    except (AvpipeError, ValueError, TypeError, AttributeError):
        raise AvpipeError(f"{path} is not a table of derived splits; remove it and derive them anew") from None


def derive_all(manifest: Manifest) -> dict[str, str]:
    """Rebuild all derived splits; the caller holds the lock. Return {name: reason} for those that cannot be rebuilt."""
    failed = {}
    for name, rule in read_rules(manifest).items():
        try:
            _derive(manifest, name, rule)
        except AvpipeError as error:
            failed[name] = str(error)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            failed[name] = f"its rule in {RULES} is of another version: {error!r}"
    return failed


def _without(manifest: Manifest, rows: pa.Table, without: list[str]) -> pa.Table:
    videos = {video_of(clip_id) for split in without for clip_id in manifest.split_ids(split)}
    return rows.filter(pa.array([video_of(clip_id) not in videos for clip_id in rows["clip_id"].to_pylist()]))


def _subset(rows: pa.Table, clips: int, whole_videos: bool, seed: int, base: str) -> pa.Table:
    if not 0 < clips <= len(rows):
        raise AvpipeError(f"{clips} clips were asked for, and {len(rows)} of {base} are there; ask for fewer")
    ids = rows["clip_id"].to_pylist()
    keys = [seeded_hash(seed, video_of(clip_id) if whole_videos else clip_id) for clip_id in ids]
    last = sorted(keys)[clips - 1]  # clips of a video share a key, so those of the last video are added together
    return rows.filter(pa.array([key <= last for key in keys]))


def seeded_hash(seed: int, text: str) -> bytes:
    """Return a sort key for an order that depends only on the seed."""
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


def _append(manifest: Manifest, name: str, rows: pa.Table, rule: dict) -> dict:
    path, facts = manifest.folder / "splits.parquet", manifest.facts()
    ids = rows["clip_id"].to_pylist()
    role = facts["splits"][rule["base"]]["role"]
    facts["splits"][name] = {"role": role, "listed": len(ids), "sha256": ids_sha256(ids), "rule": rule}
    table = manifest.table("splits")
    columns = {
        "split": pa.array([name] * len(ids), pa.string()),
        "clip_id": rows["clip_id"],
        "position": pa.array(range(len(ids)), pa.int64()),
        "audio_clip_id": rows["audio_clip_id"],
        "line": rows["line"],
    }
    kept = table.filter(pc.not_equal(table["split"], name))
    write_table(pa.concat_tables([kept, pa.table(columns, SPLITS)]), path, facts)
    return facts["splits"][name]
