"""Builds the manifest: the official lists, checked and parsed, joined into clips, boxes and splits."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import ids_sha256
from avpipe.pipeline.manifest.catalogue import OfficialList, SplitDefinition, find_lists, list_sha256, load_catalogue
from avpipe.pipeline.manifest.derive import derive_all, manifest_lock
from avpipe.pipeline.manifest.list_parsers import Row, box_defect, parse_list, text_framing
from avpipe.pipeline.manifest.tables import BOXES, CLIP_S, CLIPS, CORNERS, SPLITS, Manifest, write_table

TEST_HALF = "vggsound_test_csv"


def build_manifest(lists_folder: Path, manifest_folder: Path, accept_changed: bool = False) -> dict:
    """Join the lists in `lists_folder` into the three tables; return the counts written.

    A clip's label comes from vggsound.csv, else from test.csv, else from the boxes' file. Unusable boxes are kept with
    their defect. Derived splits are rebuilt from their rules. Raises AvpipeError, with file and line, for a list that
    differs from the published one or from an earlier build, or is unreadable; and while another process changes the
    manifest.
    """
    with manifest_lock(manifest_folder):
        return _build(lists_folder, manifest_folder, accept_changed)


def _build(lists_folder: Path, manifest_folder: Path, accept_changed: bool) -> dict:
    catalogue, definitions = load_catalogue()
    paths = find_lists(lists_folder, accept_changed)
    hashes = {name: list_sha256(path) for name, path in paths.items()}
    if not accept_changed:
        _check_recorded(catalogue, paths, hashes, manifest_folder)
    with _no_collection():
        rows = {name: parse_list(path, catalogue[name].format) for name, path in paths.items()}
        if not accept_changed:
            _check_counts(catalogue, paths, rows)
        clips, boxes = _clips(rows), _boxes(rows)
        labels = dict(zip(clips["clip_id"].to_pylist(), clips["label"].to_pylist(), strict=True))
        splits = _splits(definitions, rows, labels)
        facts = {name: _split_facts(definitions[name], members, rows) for name, members in splits.items()}
        if not accept_changed:
            _check_splits(definitions, facts, rows)
        lists = {name: {"sha256": hashes[name], "rows": len(rows[name])} | _framing(paths[name]) for name in paths}
        write_table(clips, manifest_folder / "clips.parquet", {"lists": lists})
        write_table(boxes, manifest_folder / "boxes.parquet", {"lists": lists})
        write_table(_split_table(splits), manifest_folder / "splits.parquet", {"lists": lists, "splits": facts})
    manifest = Manifest(manifest_folder)
    not_derived = derive_all(manifest)
    return {
        "clips": len(clips),
        "boxes": len(boxes),
        "boxes_unusable": len(boxes) - boxes["defect"].null_count,
        "splits": manifest.split_sizes(),
        "splits_incomplete": {
            name: definitions[name].clips
            for name, members in splits.items()
            if definitions[name].list not in rows and definitions[name].clips != len(members)
        },
        "splits_not_derived": not_derived,
        "lists_missing": _missing(catalogue, rows),
    }


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection, which would traverse a million live rows again and again (a fifth of the time)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _missing(catalogue: dict[str, OfficialList], rows: dict[str, list[Row]]) -> list[str]:
    """Published lists that were missing, unless only synthetic ones were given."""
    published_names = [name for name, entry in catalogue.items() if entry.repository]
    return [name for name in published_names if name not in rows] if rows.keys() & set(published_names) else []


def _check_recorded(catalogue, paths: dict[str, Path], hashes: dict[str, str], manifest_folder: Path) -> None:
    """Check that a published list without a pinned hash is the one of the first build."""
    if not (manifest_folder / "splits.parquet").exists():
        return
    recorded = Manifest(manifest_folder).facts().get("lists", {})
    for name, path in paths.items():
        before = recorded.get(name, {}).get("sha256")
        if catalogue[name].repository and catalogue[name].sha256 is None and before not in (None, hashes[name]):
            raise AvpipeError(
                f"{path} has changed since the manifest was first built: SHA-256 {hashes[name]}, recorded {before}; "
                "get that one again, or pass --accept-changed to use and record this one"
            )


def _check_counts(catalogue, paths: dict[str, Path], rows: dict[str, list[Row]]) -> None:
    for name, path in paths.items():
        expected = catalogue[name].rows
        if expected not in (None, len(rows[name])):
            raise AvpipeError(f"{path} has {len(rows[name])} rows where {expected} were expected; get it again")


def _framing(path: Path) -> dict:
    return {"framing": text_framing(path)} if path.suffix in (".csv", ".txt") else {}


def _splits(definitions: dict[str, SplitDefinition], rows, labels: dict[str, str | None]) -> dict[str, list[Row]]:
    """Return the rows of every split whose lists are available, in list order."""
    splits: dict[str, list[Row]] = {}
    for name, definition in definitions.items():
        source = rows.get(definition.list) or rows.get(definition.else_list or "")
        if source is None:
            continue
        if definition.unseen_by is None:
            splits[name] = [row for row in source if definition.part in (None, row.part)]
        elif definition.unseen_by in splits:
            seen = {labels[row.clip_id] for row in splits[definition.unseen_by]}
            splits[name] = [Row(clip_id=row.clip_id) for row in source if row.label not in seen]
    return splits


def _check_splits(definitions: dict[str, SplitDefinition], facts: dict[str, dict], rows) -> None:
    for name, fact in facts.items():
        definition = definitions[name]
        if definition.list in rows and definition.clips not in (None, fact["listed"]):
            raise AvpipeError(f"split {name}: {fact['listed']} clips where {definition.clips} were expected")
        if definition.ids_sha256 not in (None, fact["sha256"]):
            raise AvpipeError(f"split {name}: its ids have hash {fact['sha256']}, not {definition.ids_sha256}")


def _split_facts(definition: SplitDefinition, members: list[Row], rows: dict[str, list[Row]]) -> dict:
    ids = [row.clip_id for row in members]
    source = definition.list if definition.list in rows else definition.else_list
    return {"role": definition.role, "list": source, "listed": len(ids), "sha256": ids_sha256(ids)}


def _clips(rows: dict[str, list[Row]]) -> pa.Table:
    labels: dict[str, str | None] = {}
    parts: dict[str, str] = {}
    made: set[str] = set()
    for list_name, list_rows in rows.items():  # in catalogue order: the best source of labels first
        for row in list_rows:
            if labels.get(row.clip_id) is None:
                labels[row.clip_id] = row.label
            if row.audio_clip_id:
                labels.setdefault(row.audio_clip_id, None)
            if part := "test" if list_name == TEST_HALF else row.part:
                parts.setdefault(row.clip_id, part)
        if list_name.startswith("synth"):
            made.update(row.clip_id for row in list_rows)
    names = sorted(labels)
    ids = pa.array(names, pa.string())
    flickr = pc.utf8_is_digit(ids)  # as clip_of, vectorised
    start_s = pc.cast(pc.if_else(flickr, "0", pc.utf8_slice_codeunits(ids, -6)), pa.float64())
    columns = {
        "clip_id": ids,
        "dataset": pc.if_else(pa.array([n in made for n in names]), "synth", pc.if_else(flickr, "flickr", "vggsound")),
        "youtube_id": pc.if_else(flickr, None, pc.utf8_slice_codeunits(ids, 0, -7)),
        "start_s": start_s,
        "end_s": pc.if_else(flickr, None, pc.add(start_s, CLIP_S)),
        "label": [labels[name] for name in names],
        "official_split": [parts.get(name) for name in names],
    }
    return pa.table(columns, CLIPS)


def _boxes(rows: dict[str, list[Row]]) -> pa.Table:
    records = [
        {"clip_id": row.clip_id, "annotator": who, **dict(zip(CORNERS, box, strict=True)), "defect": box_defect(box)}
        for list_rows in rows.values()
        for row in list_rows
        for who, box in row.boxes
    ]
    return pa.Table.from_pylist(records, BOXES)


def _split_table(splits: dict[str, list[Row]]) -> pa.Table:
    """Return splits.parquet in long form."""
    tables = [
        pa.table(
            {
                "split": [name] * len(members),
                "clip_id": [row.clip_id for row in members],
                "position": range(len(members)),
                "audio_clip_id": [row.audio_clip_id for row in members],
                "line": [row.line for row in members],
            },
            SPLITS,
        )
        for name, members in splits.items()
    ]
    return pa.concat_tables(tables) if tables else SPLITS.empty_table()
