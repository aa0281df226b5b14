"""Parsers of the official lists: each yields rows, and reports errors with file and line."""

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import CLIP_ID, check_clip_id

# Published boxes exceed the frame by rounding at most; broken ones have a coordinate near -2.9e16.
LARGEST_COORDINATE = 2.0
IMAGE_OR_VIDEO = (".jpg", ".mp4")
FLICKR_PATH = re.compile(r"videos2?(?:/[0-9])+/([0-9]{1,20})\.mp4", re.ASCII)
# Flickr's annotators drew on frames of 256 × 256 pixels.
FLICKR_GRID = 256
# Skips the byte order mark that spreadsheets put in front.
ENCODING = "utf-8-sig"
PAIR_HEADER = ["video", "audio", "label"]


Box = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax as fractions of the full frame."""


@dataclass(kw_only=True, slots=True)
class Row:
    """A row of a list."""

    clip_id: str
    label: str | None = None
    part: str | None = None
    """`train` or `test`, if the list says so."""
    boxes: Sequence[tuple[int, Box]] = ()
    """(annotator, counted from 0, box) for each sounding object."""
    audio_clip_id: str | None = None
    """The clip whose sound belongs to this frame, if it is another one."""
    line: str | None = None
    """The line as published, without its ending, if it is more than the clip id."""


def parse_list(path: Path, form: str) -> list[Row]:
    """Return all rows of a list. Raises AvpipeError with file and line for a malformed line or a repeated id."""
    rows, seen = [], {}
    try:
        for where, row in PARSERS[form](path):
            if not CLIP_ID.fullmatch(row.clip_id):
                check_clip_id(row.clip_id, where)
            if row.clip_id in seen:
                first = seen[row.clip_id].removeprefix(f"{path}, ")
                raise AvpipeError(f"{where}: {row.clip_id} is listed again (first in {first}); remove one")
            seen[row.clip_id] = where
            rows.append(row)
    except UnicodeDecodeError as error:
        raise AvpipeError(f"{path} is not a UTF-8 list ({error}); get the published file") from None
    if not rows:
        raise AvpipeError(f"{path} is empty; get the published file")
    return rows


def text_framing(path: Path) -> dict:
    """Return what a text list has besides its rows: its line endings, whether the last line has one, and the header.

    Together with the rows' lines, this reproduces the published file byte for byte.
    """
    with open(path, "rb") as file:
        first = file.readline()
        file.seek(-1, 2)
        ends = file.read(1) == b"\n"
    newline = "\r\n" if first.endswith(b"\r\n") else "\n"
    header = ",".join(PAIR_HEADER)
    has_header = first.rstrip(b"\r\n").decode(ENCODING, "replace") == header
    return {"newline": newline, "last_line_ends": ends, "header": header if has_header else None}


def box_defect(box: Box) -> str | None:
    """Return why a box is unusable, or None: not_a_number, out_of_range, inverted, zero_area or outside the frame."""
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


def _csv_rows(path: Path, columns: int) -> Iterator[tuple[str, list[str], str]]:
    """Yield (file and line, values, text as published) of each row."""
    lines: list[str] = []
    with open(path, encoding=ENCODING, newline="") as file:
        reader = csv.reader(_recorded(file, lines), strict=True)
        try:
            for values in reader:
                where, text = f"{path}, line {reader.line_num}", "".join(lines).rstrip("\r\n")
                lines.clear()
                if not values:
                    continue
                if len(values) != columns:
                    raise AvpipeError(f"{where}: {len(values)} columns where {columns} were expected; correct it")
                yield where, values, text
        except csv.Error as error:
            raise AvpipeError(f"{path}, line {reader.line_num}: {error}; correct the quotes here or above") from None


def _recorded(lines: Iterator[str], record: list[str]) -> Iterator[str]:
    for line in lines:
        record.append(line)
        yield line


def _vggsound_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """YouTube id, start second, label, train or test; no header."""
    for where, (youtube_id, start, label, part), line in _csv_rows(path, 4):
        if not (start.isascii() and start.isdigit() and len(start) <= 6):
            raise AvpipeError(f"{where}: start second {start!r} is not a whole number of up to six digits; correct it")
        if part not in ("train", "test"):
            raise AvpipeError(f"{where}: {part!r} is neither 'train' nor 'test'; correct it")
        yield where, Row(clip_id=f"{youtube_id}_{int(start):06d}", label=label, part=part, line=line)


def _label_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """`<clip id>.mp4`, label; no header."""
    for where, (name, label), line in _csv_rows(path, 2):
        yield where, Row(clip_id=name.removesuffix(".mp4"), label=label, line=line)


def _number_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """Clip id and a number of unpublished meaning; no header."""
    for where, (name, number), line in _csv_rows(path, 2):
        if not (number.isascii() and number.isdigit()):
            raise AvpipeError(f"{where}: {number!r} is not a whole number; correct it")
        yield where, Row(clip_id=name, line=line)


def _pair_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """Header, then clip of the frame, clip of the sound, and `non-sounding`: nothing in the frame makes this sound."""
    for number, (where, values, line) in enumerate(_csv_rows(path, 3)):
        if number == 0:
            if values != PAIR_HEADER:
                raise AvpipeError(f"{where}: {line!r} is not the header {','.join(PAIR_HEADER)}; correct it")
            continue
        video, audio, label = values
        if label != "non-sounding":
            raise AvpipeError(f"{where}: {label!r} is not 'non-sounding'; correct it")
        check_clip_id(audio, where)
        yield where, Row(clip_id=video, audio_clip_id=audio if audio != video else None, line=line)


def _ids(path: Path) -> Iterator[tuple[str, Row]]:
    """One clip id per line, in some lists with a file extension."""
    for where, text in _lines(path):
        name = text
        for ending in IMAGE_OR_VIDEO:
            name = name.removesuffix(ending)
        yield where, Row(clip_id=name, line=text if text != name else None)


def _flickr_paths(path: Path) -> Iterator[tuple[str, Row]]:
    """`videos/<digit>/…/<number>.mp4`, as SoundNet's archive names its files."""
    for where, text in _lines(path):
        match = FLICKR_PATH.fullmatch(text)
        if not match:
            raise AvpipeError(f"{where}: {text!r} is not a path of the form videos/0/0/0/<number>.mp4; correct it")
        yield where, Row(clip_id=match[1], line=text)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file and line, stripped text) of each non-empty line."""
    name = str(path)
    with open(path, encoding=ENCODING) as file:
        for number, line in enumerate(file, 1):
            if text := line.strip():
                yield f"{name}, line {number}", text


def _box_json(path: Path) -> Iterator[tuple[str, Row]]:
    """A list of {file, class, bbox: [[xmin, ymin, xmax, ymax], …]}."""
    where = str(path)
    try:
        for number, entry in enumerate(json.loads(path.read_text(encoding=ENCODING)), 1):
            where = f"{path}, entry {number}"
            boxes = [(0, _box(map(float, box))) for box in entry["bbox"]]
            if not (isinstance(entry["file"], str) and isinstance(entry["class"], str)):
                raise TypeError("file and class must be texts")
            entry["class"].encode()  # a lone surrogate is valid JSON, but not a valid string
            yield where, Row(clip_id=entry["file"], label=entry["class"], boxes=boxes, line=json.dumps(entry))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise AvpipeError(f"{where}: not a list of file, class and bbox ({what}); get the published file") from None


def _box_xml(folder: Path) -> Iterator[tuple[str, Row]]:
    """One file per clip, `<number>.xml`, with a node per annotator below the root."""
    for path in sorted(folder.glob("*.xml")):
        try:
            annotators = parse_xml(path).getroot()
            boxes = [(who, box) for who, node in enumerate(annotators) for box in _annotator_boxes(node)]
        except (ParseError, DefusedXmlException, ValueError, OSError, LookupError) as error:
            raise AvpipeError(f"{path}: not an annotation of Flickr ({error}); get the published file") from None
        yield str(path), Row(clip_id=path.stem, boxes=boxes)


def _annotator_boxes(node: Element) -> Iterator[Box]:
    """Boxes of one annotator: `bbox` nodes with a name and four coordinates on a 256 × 256 grid."""
    for box in node.iter("bbox"):
        yield _box(float(corner.text or "") / FLICKR_GRID for corner in list(box)[1:])


def _box(corners: Iterator[float]) -> Box:
    box = tuple(corners)
    if len(box) != 4:
        raise ValueError("a box without four coordinates")
    return box


PARSERS = {
    "vggsound_csv": _vggsound_csv,
    "label_csv": _label_csv,
    "number_csv": _number_csv,
    "pair_csv": _pair_csv,
    "ids": _ids,
    "flickr_paths": _flickr_paths,
    "box_json": _box_json,
    "box_xml": _box_xml,
}
