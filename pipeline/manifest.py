"""The manifest: which clips there should be, their boxes, and which split they are in, as three Parquet tables."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.catalogue import OfficialList, SplitDefinition, find_lists, ids_sha256, load_catalogue
from pipeline.errors import AvpipeError
from pipeline.layout import file_sha256, published
from pipeline.lists import Row, box_defect, parse_list

CLIP_S = 10.0
CORNERS = ("xmin", "ymin", "xmax", "ymax")
BOX_FIELDS = [("annotator", pa.int32()), *((name, pa.float64()) for name in CORNERS)]
CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("dataset", pa.string()),
        ("youtube_id", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("label", pa.string()),
        ("official_split", pa.string()),
    ]
)
BOXES = pa.schema([("clip_id", pa.string()), *BOX_FIELDS, ("defect", pa.string())])
SPLITS = pa.schema([("split", pa.string()), ("clip_id", pa.string()), ("position", pa.int64())])
METADATA_KEY = b"avpipe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip of the manifest."""

    clip_id: str
    youtube_id: str
    start_s: float
    end_s: float


def build_manifest(lists_folder: Path, manifest_folder: Path, accept_changed: bool = False) -> dict:
    """Join the lists in `lists_folder` into the three tables; returns the counts that were written.

    A clip's label comes from vggsound.csv, else from test.csv, else from the boxes' file. Unusable boxes are kept with
    their defect. Raises AvpipeError, naming file and line, for a list that is not as published or not readable.
    """
    catalogue, definitions = load_catalogue()
    paths = find_lists(lists_folder, accept_changed)
    rows = {name: parse_list(path, catalogue[name].format) for name, path in paths.items()}
    for name, entry in catalogue.items():
        if name in rows and entry.rows not in (None, len(rows[name])) and not accept_changed:
            raise AvpipeError(
                f"{paths[name]} has {len(rows[name])} rows where {entry.rows} were expected; get it again"
            )
    splits = {
        name: _split_ids(definition, rows[definition.list], accept_changed)
        for name, definition in definitions.items()
        if definition.list in rows
    }
    clips = _clips(rows)
    boxes = _boxes(rows)
    provenance = {name: {"sha256": file_sha256(path), "rows": len(rows[name])} for name, path in paths.items()}
    manifest_folder.mkdir(parents=True, exist_ok=True)
    _write(clips, manifest_folder / "clips.parquet", provenance)
    _write(boxes, manifest_folder / "boxes.parquet", provenance)
    _write(_splits(splits), manifest_folder / "splits.parquet", provenance)
    return {
        "clips": len(clips),
        "boxes": len(boxes),
        "boxes_unusable": len(boxes) - boxes["defect"].null_count,
        "splits": {name: len(ids) for name, ids in splits.items()},
        "lists_missing": _missing(catalogue, rows),
    }


def _missing(catalogue: dict[str, OfficialList], rows: dict[str, list[Row]]) -> list[str]:
    """Published lists that were not there, unless only made ones were given."""
    published_names = [name for name, entry in catalogue.items() if entry.repository]
    return [name for name in published_names if name not in rows] if rows.keys() & set(published_names) else []


def _split_ids(definition: SplitDefinition, rows: list[Row], accept_changed: bool) -> list[str]:
    ids = [row.clip_id for row in rows if definition.part in (None, row.part)]
    expected = definition.clips
    if expected not in (None, len(ids)) and not accept_changed:
        raise AvpipeError(f"split {definition.name}: {len(ids)} clips where {expected} were expected")
    if definition.ids_sha256 not in (None, ids_sha256(ids)) and not accept_changed:
        raise AvpipeError(f"split {definition.name}: its ids have hash {ids_sha256(ids)}, not {definition.ids_sha256}")
    return ids


def _clips(rows: dict[str, list[Row]]) -> pa.Table:
    merged: dict[str, dict] = {}
    for list_name, list_rows in rows.items():  # in the order of the catalogue: the best source of labels first
        dataset = "synth" if list_name.startswith("synth") else "vggsound"
        for row in list_rows:
            clip = merged.setdefault(row.clip_id, {"dataset": dataset, "label": None, "official_split": None})
            clip["label"] = clip["label"] or row.label
            part = "test" if list_name == "vggsound_test_csv" else row.part
            clip["official_split"] = clip["official_split"] or part
    ids = sorted(merged)
    starts = [float(clip_id[-6:]) for clip_id in ids]
    columns = {
        "clip_id": ids,
        "dataset": [merged[i]["dataset"] for i in ids],
        "youtube_id": [clip_id[:-7] for clip_id in ids],
        "start_s": starts,
        "end_s": [start + CLIP_S for start in starts],
        "label": [merged[i]["label"] for i in ids],
        "official_split": [merged[i]["official_split"] for i in ids],
    }
    return pa.table(columns, CLIPS)


def _boxes(rows: dict[str, list[Row]]) -> pa.Table:
    records = [
        {"clip_id": row.clip_id, "annotator": 0, **dict(zip(CORNERS, box, strict=True)), "defect": box_defect(box)}
        for list_rows in rows.values()
        for row in list_rows
        for box in row.boxes
    ]
    return pa.Table.from_pylist(records, BOXES)


def _splits(splits: dict[str, list[str]]) -> pa.Table:
    tables = [
        pa.table({"split": [name] * len(ids), "clip_id": ids, "position": range(len(ids))}, SPLITS)
        for name, ids in splits.items()
    ]
    return pa.concat_tables(tables) if tables else SPLITS.empty_table()


def _write(table: pa.Table, path: Path, provenance: dict) -> None:
    metadata = {METADATA_KEY: json.dumps({"format": 1, "lists": provenance}, sort_keys=True)}
    with published(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Reads the tables; each question loads only the columns it needs."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Manifest":
        """Raises AvpipeError where no manifest was built."""
        if not (folder / "splits.parquet").exists():
            raise AvpipeError(f"{folder} holds no manifest; run `avpipe manifest build` first")
        return cls(folder)

    def split_sizes(self) -> dict[str, int]:
        """Number of clips of every split."""
        counts = pc.value_counts(pq.read_table(self.folder / "splits.parquet", columns=["split"])["split"])
        return {row["values"]: row["counts"] for row in counts.to_pylist()}

    def split_ids(self, split: str) -> list[str]:
        """Clip ids of a split in the order of its list. Raises AvpipeError for an unknown split."""
        table = pq.read_table(self.folder / "splits.parquet", filters=[("split", "=", split)])
        if not len(table):
            definition = load_catalogue()[1].get(split)
            if definition:
                raise AvpipeError(
                    f"split {split!r} needs the list {definition.list}, which was not there when the manifest was "
                    "built; add it and run `avpipe manifest build` again"
                )
            raise AvpipeError(f"there is no split {split!r}; there are: {', '.join(sorted(self.split_sizes()))}")
        return table.sort_by("position")["clip_id"].to_pylist()

    def ids(self, split: str | None) -> list[str]:
        """Clip ids of a split, or of the whole manifest."""
        if split is not None:
            return self.split_ids(split)
        return pq.read_table(self.folder / "clips.parquet", columns=["clip_id"])["clip_id"].to_pylist()

    def clips(self, clip_ids: Collection[str]) -> list[Clip]:
        """What to download for these clips, in their order."""
        columns = ["clip_id", "youtube_id", "start_s", "end_s"]
        table = self._rows_of("clips.parquet", clip_ids, columns)
        by_id = {row["clip_id"]: Clip(**row) for row in table.to_pylist()}
        return [by_id[clip_id] for clip_id in clip_ids]

    def labels(self, clip_ids: Collection[str]) -> dict[str, str | None]:
        """Label of each clip; None where no list gives one."""
        table = self._rows_of("clips.parquet", clip_ids, ["clip_id", "label"])
        return dict(zip(table["clip_id"].to_pylist(), table["label"].to_pylist(), strict=True))

    def usable_boxes(self, clip_ids: Collection[str]) -> dict[str, list[dict]]:
        """Boxes without a defect: {clip_id: [{annotator, xmin, ymin, xmax, ymax}, …]}, fractions of the full frame."""
        table = self._rows_of("boxes.parquet", clip_ids, BOXES.names)
        boxes: dict[str, list[dict]] = {}
        for row in table.filter(pc.is_null(table["defect"])).drop_columns("defect").to_pylist():
            boxes.setdefault(row.pop("clip_id"), []).append(row)
        return boxes

    def _rows_of(self, name: str, clip_ids: Collection[str], columns: list[str]) -> pa.Table:
        table = pq.read_table(self.folder / name, columns=columns)
        return table.filter(pc.is_in(table["clip_id"], value_set=pa.array(list(clip_ids), pa.string())))
