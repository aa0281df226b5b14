"""Detects truncated files from the sizes of their outermost elements."""

import struct
from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT = 0x1A45DFA3, 0x18538067
TS_PACKET, TS_SYNC = 188, 0x47
# Number of transport packets inspected; 4 or 16 bytes may come before or after each.
TS_LOOKED_AT = 5
ASF_HEADER, ASF_DATA = (
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"),
)
FLV_TAG_BYTES, FLV_SIZE_BYTES = 11, 4


def cut_off(path: Path) -> bool:
    """Whether an mp4, Matroska, AVI, ASF, FLV or MPEG-TS file is truncated; other formats do not tell.

    Raises OSError.
    """
    with open(path, "rb") as file:
        size = path.stat().st_size
        head = file.read(16)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _boxes_cut(file, size)
        if head[:4] == EBML.to_bytes(4):
            return _elements_cut(file, size)
        if head[:4] == b"RIFF":
            return 8 + struct.unpack("<I", head[4:8])[0] > size
        if head == ASF_HEADER:
            return _objects_cut(file, size)
        if head[:3] == b"FLV":
            return _tags_cut(file, size)
        return _packets_cut(file, size)


def _boxes_cut(file: BinaryIO, size: int) -> bool:
    """ISO/IEC 14496-12: whether the last box is incomplete, or the one that describes the streams is missing."""
    offset, kinds = 0, set()
    while offset < size:
        file.seek(offset)
        head = file.read(16)
        kinds.add(head[4:8])
        length = int.from_bytes(head[:4])
        if length == 1:  # the actual length follows, in eight bytes
            length = int.from_bytes(head[8:])
        offset = size if length == 0 else offset + max(length, 8)  # 0: to the end of the file
    return offset > size or b"moov" not in kinds


def _elements_cut(file: BinaryIO, size: int) -> bool:
    """RFC 8794: whether the segment is shorter than declared; live recordings declare nothing."""
    offset = 0
    while offset < size:
        file.seek(offset)
        kind, _ = _vint(file, keep_marker=True)
        length, unknown = _vint(file, keep_marker=False)
        if kind is None or length is None:
            return True
        if unknown:
            return False
        offset = file.tell() + length
        if kind == SEGMENT:
            return offset > size
    return True


def _vint(file: BinaryIO, keep_marker: bool) -> tuple[int | None, bool]:
    """Return (id or length of an element, whether it is the unknown length); None at the end."""
    first = file.read(1)
    width = 9 - first[0].bit_length() if first else 9
    rest = file.read(width - 1)
    if width > 8 or len(rest) < width - 1:
        return None, False
    value = int.from_bytes(first + rest)
    ones = (1 << 7 * width) - 1
    return (value if keep_marker else value & ones), value & ones == ones


def _objects_cut(file: BinaryIO, size: int) -> bool:
    offset = 0
    while offset < size:
        file.seek(offset)
        head = file.read(24)
        length = int.from_bytes(head[16:24], "little")
        if len(head) < 24 or length < 24:
            return head[:16] != ASF_DATA  # the data of a live recording has no length
        offset += length
    return offset > size


def _tags_cut(file: BinaryIO, size: int) -> bool:
    """Whether the last tag is incomplete: each is followed by its size."""
    if size < FLV_SIZE_BYTES:
        return True
    file.seek(size - FLV_SIZE_BYTES)
    length = int.from_bytes(file.read(FLV_SIZE_BYTES))
    start = size - FLV_SIZE_BYTES - length
    if start < 9:
        return True
    file.seek(start)
    head = file.read(FLV_TAG_BYTES)
    return int.from_bytes(head[1:4]) + FLV_TAG_BYTES != length


def _packets_cut(file: BinaryIO, size: int) -> bool:
    file.seek(0)
    head = file.read(TS_PACKET * TS_LOOKED_AT)
    is_ts = len(head) == TS_PACKET * TS_LOOKED_AT and all(byte == TS_SYNC for byte in head[::TS_PACKET])
    return is_ts and size % TS_PACKET != 0
