"""Reads the crop that a container declares: MP4's `clap`, Matroska's PixelCrop.

PyAV does not expose it. A crop in the bit stream itself is applied by the decoder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av

# Size limit of stream headers; for ten seconds of video they take about 10 kB.
MAX_HEADER_BYTES = 2**24
SAMPLE_ENTRY_BYTES = 78
SEGMENT, TRACKS, TRACK, VIDEO = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
LEFT, TOP, RIGHT, BOTTOM = b"\x54\xcc", b"\x54\xbb", b"\x54\xdd", b"\x54\xaa"


@dataclass(frozen=True, slots=True)
class Crop:
    """Number of hidden pixels at each side of the coded picture."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return any((self.left, self.top, self.right, self.bottom))


NO_CROP = Crop()


def container_crop(path: Path, format_name: str, video: av.VideoStream) -> Crop:
    """Return the container's crop of a stream; an empty one if it has none or an invalid one."""
    crop = NO_CROP
    try:
        with open(path, "rb") as file:
            if format_name.startswith("mov"):
                crop = _clean_aperture(file, video)
            elif format_name.startswith("matroska"):
                crop = _pixel_crop(file, video)
    except (ValueError, IndexError, ZeroDivisionError):  # an invalid header; FFmpeg has read what it needs of it
        pass
    sides = (crop.left, crop.top, crop.right, crop.bottom)
    inside = crop.left + crop.right < video.width and crop.top + crop.bottom < video.height
    return crop if inside and min(sides) >= 0 else NO_CROP


def _clean_aperture(file: BinaryIO, video: av.VideoStream) -> Crop:
    """ISO/IEC 14496-12, 12.1.4: width, height and offset of the centre, each as numerator and denominator."""
    for track in _find(_moov(file), b"trak"):
        header = next(_find(track, b"tkhd"), b"")
        if int.from_bytes(header[20:24] if header[:1] == b"\1" else header[12:16]) != video.id:
            continue
        for table in _find(track, b"mdia", b"minf", b"stbl", b"stsd"):
            for _, entry in _boxes(table[8:]):
                for clap in _find(entry[SAMPLE_ENTRY_BYTES:], b"clap"):
                    return _aperture([int.from_bytes(clap[k : k + 4], signed=True) for k in range(0, 32, 4)], video)
    return NO_CROP


def _aperture(values: list[int], video: av.VideoStream) -> Crop:
    width, height, right_by, down_by = (Fraction(*values[k : k + 2]) for k in range(0, 8, 2))
    left = round((video.width - width) / 2 + right_by)
    top = round((video.height - height) / 2 + down_by)
    return Crop(left, top, video.width - left - round(width), video.height - top - round(height))


def _moov(file: BinaryIO) -> bytes:
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4])
        skip = length - 8
        if length == 1:
            skip = int.from_bytes(file.read(8)) - 16
        if head[4:] == b"moov":
            return file.read(min(skip, MAX_HEADER_BYTES) if length else MAX_HEADER_BYTES)
        if length == 0 or skip < 0:
            break
        file.seek(skip, 1)
    return b""


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 0
    while offset + 8 <= len(data):
        length = int.from_bytes(data[offset : offset + 4])
        if length < 8:
            return
        yield data[offset + 4 : offset + 8], data[offset + 8 : offset + length]
        offset += length


def _find(data: bytes, name: bytes, *rest: bytes) -> Iterator[bytes]:
    """Yield the contents of all boxes with this name, or at this path of names."""
    for kind, content in _boxes(data):
        if kind == name:
            yield from _find(content, *rest) if rest else [content]


def _pixel_crop(file: BinaryIO, video: av.VideoStream) -> Crop:
    """RFC 9559, 5.1.4.1.28: PixelCropLeft etc."""
    head = file.read(MAX_HEADER_BYTES)
    place = head.find(SEGMENT)
    if place < 0:
        return NO_CROP
    place += 4
    place += 9 - head[place].bit_length()
    tracks = next((content for name, content in _elements(head[place:]) if name == TRACKS), b"")
    entries = [dict(_elements(content)) for name, content in _elements(tracks) if name == TRACK]
    # FFmpeg numbers the streams in track order.
    if video.index >= len(entries) or VIDEO not in entries[video.index]:
        return NO_CROP
    facts = dict(_elements(entries[video.index][VIDEO]))
    return Crop(*(int.from_bytes(facts.get(name, b"")) for name in (LEFT, TOP, RIGHT, BOTTOM)))


def _elements(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (id, content) of consecutive RFC 8794 elements, up to one of unknown length."""
    place = 0
    while place < len(data):
        width = 9 - data[place].bit_length()
        name, place = data[place : place + width], place + width
        width = 9 - data[place].bit_length()
        length = int.from_bytes(data[place : place + width]) & ((1 << 7 * width) - 1)
        place += width
        if length == (1 << 7 * width) - 1:
            return
        yield name, data[place : place + length]
        place += length
