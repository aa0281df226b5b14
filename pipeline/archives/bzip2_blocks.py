"""Decodes the blocks of bzip2 data after damage: each has a checksum and a marker, at any bit."""

import bz2
import re
from collections.abc import Iterator
from typing import BinaryIO

BLOCK, END = 0x314159265359, 0x177245385090
MARK_BITS, CHECKSUM_BITS = 48, 32
# A block has 900,000 bytes before compression, and at most slightly more after it.
MAX_BLOCK_BITS = 8 * 1_100_000
READ_BYTES = 1 << 20
STREAM_START = b"BZh9"


def blocks(file: BinaryIO, place: int, end: int) -> Iterator[bytes | None]:
    """Yield the contents of the blocks from byte `place` on, None for each damaged one, up to the end of the stream.

    Returns the byte after which another stream may begin.
    """
    begin = _find(file, 8 * place, 8 * end)
    while begin is not None and not begin[1]:
        behind = _find(file, begin[0] + MARK_BITS, 8 * end)
        stop = 8 * end if behind is None else behind[0]
        yield _unpacked(file, begin[0], stop) if stop - begin[0] <= MAX_BLOCK_BITS else None
        begin = behind
    return end if begin is None else (begin[0] + MARK_BITS) // 8


def _unpacked(file: BinaryIO, begin: int, stop: int) -> bytes | None:
    """Return the contents of the block between two bits; None if its checksum is wrong."""
    block, count = _bits(file, begin, stop), stop - begin
    checksum = block >> (count - MARK_BITS - CHECKSUM_BITS) & 0xFFFFFFFF if count > MARK_BITS + CHECKSUM_BITS else 0
    packed = ((block << MARK_BITS | END) << CHECKSUM_BITS) | checksum
    count += MARK_BITS + CHECKSUM_BITS
    packed <<= -count % 8
    try:
        return bz2.decompress(STREAM_START + packed.to_bytes((count + 7) // 8))
    except (OSError, ValueError):
        return None


def _bits(file: BinaryIO, begin: int, stop: int) -> int:
    file.seek(begin // 8)
    data = file.read((stop + 7) // 8 - begin // 8)
    return int.from_bytes(data) >> (-stop % 8) & ((1 << (stop - begin)) - 1)


def _find(file: BinaryIO, begin: int, stop: int) -> tuple[int, bool] | None:
    """Return the bit of the next marker and whether it is the end marker; None if there is none."""
    place = begin // 8
    while 8 * place < stop:
        file.seek(place)
        data = file.read(READ_BYTES)
        for match in INSIDE.finditer(data):
            for shift in range(8):
                bit = 8 * (place + match.start() - 1) + shift
                if begin <= bit <= stop - MARK_BITS and (mark := _bits(file, bit, bit + MARK_BITS)) in (BLOCK, END):
                    return bit, mark == END
        place += max(len(data) - MARK_BITS // 8 - 1, 1)
    return None


def _inside(mark: int) -> list[bytes]:
    """Return the five full bytes within a marker, for each bit offset at which it may begin."""
    return [(mark >> shift & (1 << 40) - 1).to_bytes(5) for shift in range(8)]


INSIDE = re.compile(b"|".join(re.escape(pattern) for mark in (BLOCK, END) for pattern in _inside(mark)), re.DOTALL)
