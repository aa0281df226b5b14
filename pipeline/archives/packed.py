"""The contents of an archive file, plain or compressed by gzip, bzip2, xz or zstd, and how far checksums confirm them.

A compressed file is a sequence of units (gzip members, bz2 and xz streams, zstd frames), each with a checksum at its
end, so that a unit's bytes are confirmed only when it has been read. After a damaged unit, reading continues at the
next one.
"""

import bz2
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from avpipe.pipeline.archives import bzip2_blocks
from avpipe.pipeline.archives.gzip_decoder import GzipDecoder
from avpipe.pipeline.archives.tar_headers import MAGIC, MAGIC_PLACE

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

READ_BYTES = 1 << 16
# Maximal output at a time, whatever a decompression bomb contains.
PIECE_BYTES = 1 << 16
# A truncated unit lacks its checksum, and a decoder notices damage only some way after it. Bytes this far before the
# cut are intact unless the file is damaged twice. For gzip: random bits lead to the end of a block after some 32 kB,
# and what follows is mostly not a valid block.
GZIP_MARGIN = 1 << 19
XZ_MARGIN = 1 << 22  # an LZMA2 chunk has 2 MiB
ZSTD_MARGIN = 1 << 19  # a block has 128 KiB
# Multiple of the file's size that may be read again after damaged units; no file may make this quadratic.
AGAIN = 4
NO_ZEROS = re.compile(rb"[^\0]")
# Zero bytes that may belong to the data: the end of a checksum or a length.
LAST_ZEROS = 16


class GapError(Exception):
    """Bytes are missing here; reading continues after them, at an unknown position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """A compression format."""

    name: str
    endings: tuple[str, ...]
    """File name extensions."""
    start: re.Pattern
    """First bytes of a unit."""
    decoder: Callable
    errors: tuple[type[Exception], ...]
    margin: int
    """Number of bytes before the end of a truncated unit that may be wrong."""
    blocks: bool = False
    """Whether each block has its own checksum, which the decoder verifies before returning the block."""


PACKINGS = (
    Packing(
        name="gzip",
        endings=(".gz", ".tgz"),
        start=re.compile(rb"\x1f\x8b\x08[\x00-\x1f]", re.DOTALL),
        decoder=GzipDecoder,
        errors=(zlib.error, ValueError),
        margin=GZIP_MARGIN,
    ),
    Packing(
        name="bzip2",
        endings=(".bz2", ".tbz2"),
        start=re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)"),
        decoder=bz2.BZ2Decompressor,
        errors=(OSError, ValueError),
        margin=0,
        blocks=True,
    ),
    Packing(
        name="xz",
        endings=(".xz", ".txz"),
        start=re.compile(rb"\xfd7zXZ\0"),
        decoder=lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 30),
        errors=(lzma.LZMAError,),
        margin=XZ_MARGIN,
    ),
    Packing(
        name="zstd",
        endings=(".zst", ".tzst"),
        start=re.compile(rb"\x28\xb5\x2f\xfd"),
        decoder=zstd.ZstdDecompressor,
        errors=(zstd.ZstdError,),
        margin=ZSTD_MARGIN,
    ),
)


class PlainStream:
    """An uncompressed file: without checksums, its bytes count as intact."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        return self._file.read(READ_BYTES)

    def seek(self, place: int) -> None:
        """Continue at this byte."""
        self._file.seek(place)

    @property
    def checked(self) -> int:
        """Number of bytes from the start that are intact as far as can be known."""
        return self.size


class PackedStream:
    """Decompresses a file from front to back, unit by unit."""

    def __init__(self, file: BinaryIO, packing: Packing):
        self._file, self._packing = file, packing
        self._end = _end_of_content(file)
        self._again = AGAIN * (self._end + READ_BYTES)  # number of bytes that may still be read again
        self._given = 0
        self._pieces = self._units()
        self.checked = 0
        """Number of bytes from the start with a verified checksum."""

    def read(self) -> bytes:
        """Return the next bytes, b"" at the end. Raises GapError if some are missing or the last were wrong."""
        piece = next(self._pieces, b"")
        if isinstance(piece, GapError):
            raise piece
        self._given += len(piece)
        return piece

    def _units(self) -> Iterator[bytes | GapError]:
        place = 0
        while place < self._end:
            start = self._find(place)
            if start is None or start > place:
                skipped = (self._end if start is None else start) - place
                if self._content_between(place, place + skipped):
                    yield GapError(f"{skipped:,} bytes at byte {place:,} of the file are no {self._packing.name} data")
            if start is None:
                return
            place = yield from self._unit(start)

    def _unit(self, start: int) -> Iterator[bytes | GapError]:
        """Decompress the unit at `start`; return where to search for the next one."""
        self._file.seek(start)
        decoder, settled = self._packing.decoder(), start
        try:
            while not decoder.eof:
                before, given = self._file.tell(), self._given
                data = self._file.read(min(READ_BYTES, self._end - self._file.tell())) if decoder.needs_input else b""
                if decoder.needs_input and not data:
                    yield self._cut_off()
                    return self._end
                yield from _nonempty(decoder.decompress(data, PIECE_BYTES))
                if self._packing.blocks:
                    # Output without further input belongs to a block whose checksum was verified.
                    while piece := b"" if decoder.eof else decoder.decompress(b"", PIECE_BYTES):
                        yield piece
                    self.checked = self._given
                    settled = before if self._given > given else settled
        except (*self._packing.errors, EOFError, MemoryError) as error:
            yield GapError(f"damaged {self._packing.name} data before byte {self._file.tell():,} of the file ({error})")
            return (yield from self._blocks(settled)) if self._packing.blocks else self._behind(start)
        self.checked = self._given
        return self._file.tell() - len(decoder.unused_data)

    def _blocks(self, place: int) -> Iterator[bytes | GapError]:
        """Decompress blocks with their own checksums from `place` on; return where to search for the next unit."""
        found = bzip2_blocks.blocks(self._file, place, self._end)
        while True:
            try:
                block = next(found)
            except StopIteration as stop:
                return stop.value
            yield GapError("a damaged block") if block is None else block
            self.checked = self._given

    def _cut_off(self) -> GapError:
        """Handle a file that ends within a unit: what is far enough before the end counts as intact."""
        self.checked = max(self.checked, self._given - self._packing.margin)
        return GapError(f"cut off at byte {self._end:,}: the end of its {self._packing.name} data is missing")

    def _behind(self, start: int) -> int:
        """Return where to search after a damaged unit: the decoder may have run past the start of the next one."""
        reached = self._file.tell()
        self._again -= reached - start
        return start + 1 if self._again > 0 else reached

    def _find(self, place: int) -> int | None:
        """Return the start of the next unit from `place` on; None if there is none."""
        overlap, before = 16, b""
        self._file.seek(place)
        while data := self._file.read(min(READ_BYTES, self._end - self._file.tell())):
            window = before + data
            if match := self._packing.start.search(window):
                return self._file.tell() - len(window) + match.start()
            before = window[-overlap:]
        return None

    def _content_between(self, start: int, end: int) -> bool:
        """Whether there is anything but zeros, which are allowed between and after units."""
        self._file.seek(start)
        while start < end and (data := self._file.read(min(READ_BYTES, end - start))):
            if NO_ZEROS.search(data):
                return True
            start += len(data)
        return False


def open_stream(file: BinaryIO, name: str) -> PlainStream | PackedStream:
    """Return the stream of an open archive, by its first bytes, or by its name if those are damaged."""
    head = file.read(MAGIC_PLACE + len(MAGIC))
    file.seek(0)
    if head.endswith(MAGIC):
        return PlainStream(file)
    by_content = next((packing for packing in PACKINGS if packing.start.match(head)), None)
    packing = by_content or next((packing for packing in PACKINGS if name.lower().endswith(packing.endings)), None)
    return PackedStream(file, packing) if packing else PlainStream(file)


def _nonempty(piece: bytes) -> Iterator[bytes]:
    if piece:
        yield piece


def _end_of_content(file: BinaryIO) -> int:
    """Return where the zeros at the end of a file begin, as left by an incomplete download into a full-size file."""
    place = size = os.fstat(file.fileno()).st_size
    while place > 0:
        start = max(0, place - READ_BYTES)
        file.seek(start)
        kept = file.read(place - start).rstrip(b"\0")
        if kept:
            return min(size, start + len(kept) + LAST_ZEROS)
        place = start
    return 0
