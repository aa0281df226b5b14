"""Audits the lists: test clips in training splits, overlapping test splits, unusable boxes."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import ids_sha256
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.work.base import chunks

TEXT_COLUMNS = 120
# Columns per table: a cell such as "3,709 (3,709)" needs 14 characters, and the row's name up to 22.
SPLITS_SIDE_BY_SIDE = 6


def audit(folder: Path, roles: dict[str, str]) -> dict:
    """Audit the manifest in `folder`; `roles` maps every split to `train` or `test`.

    Returns plain values for JSON:
        leaks: every training split against every test split: train, test, clips, videos that are in both
        overlaps: every pair of test splits: a, b, clips, videos
        boxes: total, defective, defects by kind, clips_without_usable_box, annotators (most of any clip)
        splits: by name: role, listed (rows), sha256 (of the rows' ids), clips, videos, labelled (clips), categories
    A clip counts once per split, even if only its audio is used. A video counts as shared even if the splits name
    different clips of it; a Flickr clip is a video of its own. Raises AvpipeError for a split without a role.
    """
    clips = Manifest(folder).table("clips", ["clip_id", "youtube_id", "label"]).sort_by("clip_id")
    ids = clips["clip_id"].to_pylist()
    members = _Members(clips)
    splits = {}
    for name, frames, sounds in _read_splits(folder, clips["clip_id"]):
        if name not in roles:
            raise AvpipeError(f"nothing says whether split {name} is for training; run `avpipe manifest build` again")
        sha256 = ids_sha256([ids[row] for row in np.sort(frames).tolist()])
        counts = members.add(name, frames, sounds)
        splits[name] = {"role": roles[name], "listed": len(frames), "sha256": sha256} | counts
    train, test = ([name for name in splits if roles[name] == role] for role in ("train", "test"))
    return {
        "leaks": [{"train": a, "test": b} | members.shared(a, b) for a in train for b in test],
        "overlaps": [{"a": a, "b": b} | members.shared(a, b) for a, b in combinations(test, 2)],
        "boxes": _audit_boxes(folder),
        "splits": splits,
    }


class _Members:
    """Which clips and videos each split contains, one byte each: two splits are compared in one pass over bytes."""

    def __init__(self, clips: pa.Table):
        videos = pc.coalesce(clips["youtube_id"], clips["clip_id"])
        self._video_of, self._label_of = _codes(videos), _codes(clips["label"])  # (clips,) each
        self._clips: dict[str, np.ndarray] = {}
        self._videos: dict[str, np.ndarray] = {}

    def add(self, name: str, frames: np.ndarray, sounds: np.ndarray) -> dict[str, int]:
        """Add a split by the rows of its clips and of those that only give their audio; return its counts."""
        clips = np.zeros(len(self._video_of), bool)
        clips[frames] = clips[sounds] = True
        videos = np.zeros(len(self._video_of), bool)
        videos[self._video_of[clips]] = True
        self._clips[name], self._videos[name] = clips, videos
        labels = self._label_of[clips]
        labels = labels[labels >= 0]
        return {
            "clips": int(clips.sum()),
            "videos": int(videos.sum()),
            "labelled": len(labels),
            "categories": len(np.unique(labels)),
        }

    def shared(self, a: str, b: str) -> dict[str, int]:
        """Return the numbers of clips and videos that two splits share."""
        return {
            "clips": int(np.count_nonzero(self._clips[a] & self._clips[b])),
            "videos": int(np.count_nonzero(self._videos[a] & self._videos[b])),
        }


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Encode distinct values as integers, null as -1."""
    return column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()


def _read_splits(folder: Path, clip_ids: pa.ChunkedArray):
    """Yield (split, rows of its clips, rows of the clips that only give their audio), rows as in `clip_ids`."""
    table = Manifest(folder).table("splits", ["split", "clip_id", "audio_clip_id"])
    frames = pc.index_in(table["clip_id"], value_set=clip_ids)
    sounds = pc.index_in(table["audio_clip_id"], value_set=clip_ids)
    if frames.null_count or sounds.null_count > table["audio_clip_id"].null_count:
        raise AvpipeError(f"{folder}: a split names a clip that is not there; run `avpipe manifest build` again")
    frames, sounds = frames.to_numpy(), sounds.fill_null(-1).to_numpy()
    names = pc.unique(table["split"])
    split_of = pc.index_in(table["split"], value_set=names).to_numpy()
    for code, name in enumerate(names.to_pylist()):
        of_split = split_of == code
        sounding = sounds[of_split]
        yield name, frames[of_split], sounding[sounding >= 0]


def _audit_boxes(folder: Path) -> dict:
    table = Manifest(folder).table("boxes", ["clip_id", "annotator", "defect"])
    by_clip = table.group_by("clip_id").aggregate(
        [("annotator", "count_distinct"), ("defect", "count"), ([], "count_all")]
    )
    defects = [row for row in pc.value_counts(table["defect"]).to_pylist() if row["values"]]
    defects.sort(key=lambda row: (-row["counts"], row["values"]))
    return {
        "total": len(table),
        "defective": len(table) - table["defect"].null_count,
        "defects": {row["values"]: row["counts"] for row in defects},
        "clips_without_usable_box": pc.sum(pc.equal(by_clip["defect_count"], by_clip["count_all"])).as_py() or 0,
        "annotators": pc.max(by_clip["annotator_count_distinct"]).as_py() or 0,
    }


def audit_table(report: dict) -> str:
    """Format the report of `audit`: 120 columns, no colours."""
    splits = report["splits"]
    train, test = ([name for name in splits if splits[name]["role"] == role] for role in ("train", "test"))
    leaks = {(pair["train"], pair["test"]): pair for pair in report["leaks"]}
    overlaps = {(pair["a"], pair["b"]): pair for pair in report["overlaps"]}
    console = Console(width=TEXT_COLUMNS, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as capture:
        _print_matrix(console, "Test clips (videos) in training splits", leaks, train, test)
        _print_matrix(console, "Clips (videos) that two test splits share", overlaps, test[:-1], test[1:])
        console.print(_boxes_line(report["boxes"]))
        console.print(_splits_table(splits))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _print_matrix(console: Console, title: str, pairs: dict, rows: list[str], columns: list[str]) -> None:
    """Print only rows and columns with shared clips, and name the other splits in one line."""
    dirty = {name for names, pair in pairs.items() if pair["videos"] for name in names}
    console.print(f"{title}:")
    for block in chunks([name for name in columns if name in dirty], SPLITS_SIDE_BY_SIDE):
        table = Table(box=None, pad_edge=False)
        table.add_column("", no_wrap=True)
        for name in block:
            table.add_column(name.replace("_", "_\n"), justify="right", no_wrap=True)
        for row in rows:
            of_row = [pairs.get((row, column)) for column in block]
            if any(pair and pair["videos"] for pair in of_row):
                table.add_row(row, *map(_cell, of_row))
        console.print(table, "")
    clean = [name for name in dict.fromkeys([*rows, *columns]) if name not in dirty]
    if clean:
        console.print(f"nothing in {', '.join(clean)}\n")


def _cell(pair: dict | None) -> str:
    """Format clips and videos; "-" if nothing is shared, empty if the pair is shown elsewhere."""
    if pair is None:
        return ""
    return f"{pair['clips']:,} ({pair['videos']:,})" if pair["videos"] else "-"


def _boxes_line(boxes: dict) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in boxes["defects"].items())
    return (
        f"Boxes: {boxes['total']:,}, unusable {boxes['defective']:,}{f' ({kinds})' if kinds else ''}; "
        f"clips without a usable box: {boxes['clips_without_usable_box']:,}; "
        f"annotators of a clip: up to {boxes['annotators']}\n"
    )


def _splits_table(splits: dict) -> Table:
    numbers = ("listed", "clips", "videos", "labelled", "categories")
    table = Table(box=None, pad_edge=False)
    table.add_column("split", no_wrap=True)
    table.add_column("role")
    for name in numbers:
        table.add_column(name, justify="right")
    table.add_column("sha256 of ids")
    for name, split in splits.items():
        table.add_row(name, split["role"], *(f"{split[number]:,}" for number in numbers), split["sha256"][:12])
    return table
