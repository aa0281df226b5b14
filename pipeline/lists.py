"""Parsers of the official lists: each yields rows of plain values, and names file and line of what it cannot read."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import AvpipeError
from pipeline.layout import check_clip_id

# No published box leaves the frame by more than rounding; the broken ones have a coordinate near -2.9e16.
LARGEST_COORDINATE = 2.0
IMAGE_OR_VIDEO = (".jpg", ".mp4")


@dataclass(kw_only=True, slots=True)
class Row:
    """One line of a list."""

    clip_id: str
    label: str | None = None
    part: str | None = None
    """`train` or `test`, where the list says."""
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    """xmin, ymin, xmax, ymax as fractions of the full frame."""


def parse_list(path: Path, form: str) -> list[Row]:
    """All rows of a list. Raises AvpipeError with file and line for what is not of the form, and for a repeated id."""
    rows, seen = [], {}
    try:
        for where, row in PARSERS[form](path):
            check_clip_id(row.clip_id, where)
            if row.clip_id in seen:
                raise AvpipeError(
                    f"{where}: {row.clip_id} stands here again (first in {seen[row.clip_id]}); remove one"
                )
            seen[row.clip_id] = where.removeprefix(f"{path}, ")
            rows.append(row)
    except UnicodeDecodeError as error:
        raise AvpipeError(f"{path} is not a UTF-8 list ({error}); get the published file") from None
    if not rows:
        raise AvpipeError(f"{path} is empty; get the published file")
    return rows


def box_defect(box: tuple[float, float, float, float]) -> str | None:
    """Why a box cannot be used, or None: not_a_number, out_of_range, inverted, zero_area or outside the frame."""
    xmin, ymin, xmax, ymax = box
    if not all(map(math.isfinite, box)):
        return "not_a_number"
    if max(map(abs, box)) > LARGEST_COORDINATE:
        return "out_of_range"
    if xmax < xmin or ymax < ymin:
        return "inverted"
    if xmax == xmin or ymax == ymin:
        return "zero_area"
    if xmax <= 0 or ymax <= 0 or xmin >= 1 or ymin >= 1:
        return "outside"
    return None


def _csv_rows(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for values in reader:
                where = f"{path}, line {reader.line_num}"
                if not values:
                    continue
                if len(values) != columns:
                    raise AvpipeError(f"{where}: {len(values)} columns where {columns} were expected; correct it")
                yield where, values
        except csv.Error as error:
            raise AvpipeError(f"{path}, line {reader.line_num}: {error}; correct the quotes here or above") from None


def _vggsound_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """YouTube id, start second, label, train or test; no header."""
    for where, (youtube_id, start, label, part) in _csv_rows(path, 4):
        if not (start.isascii() and start.isdigit() and len(start) <= 6):
            raise AvpipeError(f"{where}: start second {start!r} is not a whole number of up to six digits; correct it")
        if part not in ("train", "test"):
            raise AvpipeError(f"{where}: {part!r} is neither 'train' nor 'test'; correct it")
        yield where, Row(clip_id=f"{youtube_id}_{int(start):06d}", label=label, part=part)


def _label_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """`<clip id>.mp4`, label; no header."""
    for where, (name, label) in _csv_rows(path, 2):
        yield where, Row(clip_id=name.removesuffix(".mp4"), label=label)


def _ids(path: Path) -> Iterator[tuple[str, Row]]:
    """One clip id a line, some lists with the ending of a file."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            for ending in IMAGE_OR_VIDEO:
                text = text.removesuffix(ending)
            if text:
                yield f"{path}, line {number}", Row(clip_id=text)


def _box_json(path: Path) -> Iterator[tuple[str, Row]]:
    """A list of {file, class, bbox: [[xmin, ymin, xmax, ymax], …]}."""
    where = str(path)
    try:
        for number, entry in enumerate(json.loads(path.read_text(encoding="utf-8")), 1):
            where = f"{path}, entry {number}"
            boxes = [tuple(map(float, box)) for box in entry["bbox"]]
            if any(len(box) != 4 for box in boxes):
                raise ValueError("a box without four coordinates")
            yield where, Row(clip_id=str(entry["file"]), label=str(entry["class"]), boxes=boxes)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise AvpipeError(f"{where}: not a list of file, class and bbox ({what}); get the published file") from None


PARSERS = {"vggsound_csv": _vggsound_csv, "label_csv": _label_csv, "ids": _ids, "box_json": _box_json}
