"""Manifest tables that come with a folder of files: checked, then adopted by a root that has none."""

from pathlib import Path

import pyarrow as pa

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.core.ids import check_clip_id, check_split_name, youtube_id
from avpipe.pipeline.core.parquet import read_parquet
from avpipe.pipeline.manifest.tables import FORMAT, TABLES, Manifest

ROLES = {"train", "test"}


def adopt_manifest(source: Path, target: Path) -> bool:
    """Copy the tables in `source` to `target`, if it has none and `source` has all three; return whether it did.

    Raises AvpipeError for invalid tables: ids and names in them become paths.
    """
    paths = {name: source / f"{name}.parquet" for name in TABLES}
    if (target / "splits.parquet").exists() or not all(path.is_file() for path in paths.values()):
        return False
    _check(source, paths)
    target.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():  # splits come last: they complete the manifest
        with atomic_write(target / f"{name}.parquet") as temporary:
            temporary.write_bytes(path.read_bytes())
    return True


def _check(source: Path, paths: dict[str, Path]) -> None:
    tables = {
        name: read_parquet(path, TABLES[name], "a table of avpipe's manifest", f"remove {source}")
        for name, path in paths.items()
    }
    _check_facts(source)
    _check_ids(paths, tables)
    facts = Manifest(source).facts()["splits"]
    for split in set(_texts(paths["splits"], tables["splits"], "split")):
        check_split_name(split)
        if split not in facts:
            raise AvpipeError(f"{paths['splits']} says nothing about its split {split}; remove {source}")


def _check_ids(paths: dict[str, Path], tables: dict[str, pa.Table]) -> None:
    ids = _texts(paths["clips"], tables["clips"], "clip_id")
    listed = {check_clip_id(clip_id, str(paths["clips"])) for clip_id in ids}
    videos = tables["clips"]["youtube_id"].to_pylist()
    if len(listed) != len(ids) or [youtube_id(clip_id) for clip_id in ids] != videos:
        raise AvpipeError(f"{paths['clips']} names a clip twice or under another video; remove {paths['clips'].parent}")
    audio = tables["splits"]["audio_clip_id"].drop_null().to_pylist()
    for name in ("boxes", "splits"):
        if not listed.issuperset(_texts(paths[name], tables[name], "clip_id")) or not listed.issuperset(audio):
            raise AvpipeError(f"{paths[name]} has clips that {paths['clips']} has not; remove {paths[name].parent}")


def _check_facts(source: Path) -> None:
    facts = Manifest(source).facts()
    splits = facts.get("splits")
    plain = isinstance(splits, dict) and all(
        isinstance(split, dict) and split.get("role") in ROLES and isinstance(split.get("listed"), int)
        for split in splits.values()
    )
    if facts.get("format") != FORMAT or not isinstance(facts.get("lists"), dict) or not plain:
        raise AvpipeError(f"{source} was not written by this version of avpipe; remove it or export again")


def _texts(path: Path, table: pa.Table, column: str) -> list[str]:
    if table[column].null_count:
        raise AvpipeError(f"{path} has rows without {column}; remove {path.parent}")
    return table[column].to_pylist()
