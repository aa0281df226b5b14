"""The manifest: all clips, their boxes and their splits, as three Parquet tables."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import youtube_id
from avpipe.pipeline.core.parquet import read_facts, read_parquet, write_parquet
from avpipe.pipeline.manifest.catalogue import load_catalogue

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
SPLITS = pa.schema(
    [
        ("split", pa.string()),
        ("clip_id", pa.string()),
        ("position", pa.int64()),
        ("audio_clip_id", pa.string()),
        ("line", pa.string()),
    ]
)
TABLES = {"clips": CLIPS, "boxes": BOXES, "splits": SPLITS}
METADATA_KEY = b"avpipe"
WHAT, FIX = "a table of the manifest", "remove its folder and run `avpipe manifest build` again"
# Raised whenever the format of the tables changes.
FORMAT = 2
CLIP_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip of the manifest."""

    clip_id: str
    youtube_id: str | None
    """None for a Flickr clip."""
    start_s: float
    end_s: float | None
    """None if the clip is the entire file."""

    @property
    def length_s(self) -> float | None:
        """Length of the clip in seconds; None if it is the entire file."""
        return None if self.end_s is None else self.end_s - self.start_s


def clip_of(clip_id: str) -> Clip:
    """Return the clip of an id: ten seconds of a YouTube video, or an entire Flickr file."""
    video = youtube_id(clip_id)
    if video is None:
        return Clip(clip_id=clip_id, youtube_id=None, start_s=0.0, end_s=None)
    start_s = float(clip_id[-6:])
    return Clip(clip_id=clip_id, youtube_id=video, start_s=start_s, end_s=start_s + CLIP_S)


def write_table(table: pa.Table, path: Path, facts: dict) -> None:
    """Write one of the three tables with `facts` (its lists and splits) in its metadata."""
    metadata = {METADATA_KEY: json.dumps(facts | {"format": FORMAT})}
    write_parquet(table.replace_schema_metadata(metadata), path, compression="zstd")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Reads the tables; each method loads only the columns that it needs."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Manifest":
        """Open a manifest. Raises AvpipeError if none was built, or one of another format."""
        if not (folder / "splits.parquet").exists():
            raise AvpipeError(f"{folder} holds no manifest; run `avpipe manifest build` first")
        manifest = cls(folder)
        if manifest.facts().get("format") != FORMAT:
            raise AvpipeError(f"{folder} was built by another version of avpipe; run `avpipe manifest build` again")
        return manifest

    def facts(self) -> dict:
        """Return the tables' sources: `lists` (sha256, rows, framing) and `splits` (role, list, listed, sha256)."""
        try:
            facts = json.loads(read_facts(self.folder / "splits.parquet", WHAT, FIX)[1].get(METADATA_KEY, b"{}"))
        except (ValueError, RecursionError):
            raise AvpipeError(f"{self.folder}/splits.parquet is damaged; {FIX}") from None
        return facts if isinstance(facts, dict) else {}

    def split_facts(self, split: str) -> dict:
        """Return role, list, number of rows and hash of a split. Raises AvpipeError if it was not built."""
        splits = self.facts()["splits"]
        if split in splits:
            return splits[split]
        definition = load_catalogue()[1].get(split)
        if definition:
            raise AvpipeError(
                f"split {split!r} needs the list {definition.list}, which was not there when the manifest was built; "
                "add it and run `avpipe manifest build` again"
            )
        raise AvpipeError(f"there is no split {split!r}; there are: {', '.join(sorted(splits))}")

    def split_sizes(self) -> dict[str, int]:
        """Return the number of rows of every split."""
        return {name: facts["listed"] for name, facts in self.facts()["splits"].items()}

    def roles(self) -> dict[str, str]:
        """Return `train` or `test` for every split."""
        return {name: facts["role"] for name, facts in self.facts()["splits"].items()}

    def rows(self, split: str) -> pa.Table:
        """Return clip_id, audio_clip_id and line of a split's rows, in order. Raises AvpipeError if unknown."""
        self.split_facts(split)
        table = self.table("splits")
        return (
            table.filter(pc.equal(table["split"], split))
            .sort_by("position")
            .select(["clip_id", "audio_clip_id", "line"])
        )

    def split_ids(self, split: str) -> list[str]:
        """Return the ids that a split needs: those listed, in order, then those that only give their audio."""
        rows = self.rows(split)
        audio = rows["audio_clip_id"].drop_null()
        return list(dict.fromkeys(rows["clip_id"].to_pylist() + audio.to_pylist()))

    def negatives(self, split: str) -> dict | None:
        """Return the pairs of a list of negatives (nothing in the frame makes the sound); None for other splits.

        `pairs` is [[frame's clip, sound's clip], …], `adds_to` the split of the positives.
        """
        rows = self.rows(split).to_pylist()
        if not any(row["audio_clip_id"] for row in rows):
            return None
        definition = load_catalogue()[1].get(split)
        pairs = [[row["clip_id"], row["audio_clip_id"] or row["clip_id"]] for row in rows]
        return {"adds_to": definition.adds_to if definition else None, "pairs": pairs}

    def ids(self, split: str | None) -> list[str]:
        """Return the clip ids of a split, or of the entire manifest."""
        if split is not None:
            return self.split_ids(split)
        return self.table("clips", ["clip_id"])["clip_id"].to_pylist()

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read `clips`, `boxes` or `splits`, all columns or some. Raises AvpipeError for a damaged file."""
        schema = pa.schema([TABLES[name].field(column) for column in columns or TABLES[name].names])
        return read_parquet(self.folder / f"{name}.parquet", schema, WHAT, FIX)

    def clips(self, clip_ids: Collection[str]) -> list[Clip]:
        """Return what to download for these clips, in order."""
        columns = ["clip_id", "youtube_id", "start_s", "end_s"]
        table = self._rows_of("clips", clip_ids, columns)
        by_id = {row["clip_id"]: Clip(**row) for row in table.to_pylist()}
        return [by_id[clip_id] for clip_id in clip_ids]

    def labels(self, clip_ids: Collection[str]) -> dict[str, str | None]:
        """Return the label of each clip; None if no list has one."""
        table = self._rows_of("clips", clip_ids, ["clip_id", "label"])
        return dict(zip(table["clip_id"].to_pylist(), table["label"].to_pylist(), strict=True))

    def usable_boxes(self, clip_ids: Collection[str]) -> dict[str, list[dict]]:
        """Return the usable boxes, {clip_id: [{annotator, xmin, ymin, xmax, ymax}, …]}, fractions of the full frame."""
        table = self._rows_of("boxes", clip_ids, BOXES.names)
        boxes: dict[str, list[dict]] = {}
        for row in table.filter(pc.is_null(table["defect"])).drop_columns("defect").to_pylist():
            boxes.setdefault(row.pop("clip_id"), []).append(row)
        return boxes

    def _rows_of(self, name: str, clip_ids: Collection[str], columns: list[str]) -> pa.Table:
        table = self.table(name, columns)
        return table.filter(pc.is_in(table["clip_id"], value_set=pa.array(list(clip_ids), pa.string())))
