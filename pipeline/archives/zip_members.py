"""Members of a zip: each has its own checksum, so damage costs only the members that it touches.

The directory is at the end. If it is damaged or missing, the headers before the members are read instead.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from avpipe.pipeline.archives.lookahead import COPY_BYTES
from avpipe.pipeline.archives.tar_headers import refusal
from avpipe.pipeline.archives.tar_members import Losses, Member
from avpipe.pipeline.core.untrusted_files import ScratchFile

MAGIC = b"PK\x03\x04"
STARTS = (MAGIC, b"PK\x05\x06")
# Raised by zipfile and its decoders for damage; RuntimeError also for unknown compression.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error)
LINK = 0o120000
LOCAL = struct.Struct("<4s5H3I2H")
ENCRYPTED, SIZES_BEHIND, UTF8 = 1, 8, 1 << 11
ZIP64 = 0xFFFFFFFF


class ZipReader:
    """Reads an open zip. `choose` returns where to write a member, None for nowhere."""

    def __init__(self, file: BinaryIO, choose: Callable[[Member], Path | None]):
        self.losses = Losses()
        self._file, self._choose = file, choose
        self._known: dict[tuple[int, str], int] = {}  # (start of a header, name in it): end of its data

    def members(self) -> Iterator[Member]:
        """Yield all members except folders; a damaged one may come again, intact."""
        try:
            directory = zipfile.ZipFile(self._file)
        except DAMAGE as error:
            self.losses.places.append(f"its directory is damaged or cut off ({error})")
        else:
            for entry in directory.infolist():
                yield from self._listed(directory, entry)
        yield from self._unlisted()

    def _listed(self, directory: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[Member]:
        """Return a member of the directory."""
        begin, name = entry.header_offset, entry.orig_filename
        self._known[begin, name] = begin + LOCAL.size + len(name) + entry.compress_size
        if entry.is_dir():
            return
        is_file = (entry.external_attr >> 16) & 0o170000 != LINK
        member = Member(name=entry.filename, size=entry.file_size, refused=refusal(entry.filename, is_file))
        if entry.flag_bits & ENCRYPTED:
            member.refused = member.refused or "it is encrypted"
        member.file = self._choose(member)
        if member.file is not None:
            try:
                with directory.open(entry) as source:
                    _copy(iter(lambda: source.read(COPY_BYTES), b""), member)
            except DAMAGE as error:
                self._damaged(member, f"it cannot be unpacked ({error})")
                del self._known[begin, name]
        yield member

    def _unlisted(self) -> Iterator[Member]:
        """Yield members whose headers are missing from the directory, or elsewhere than it says."""
        place = 0
        while (start := _find(self._file, place)) is not None:
            self._file.seek(start)
            head = self._file.read(LOCAL.size)
            place = start + len(MAGIC)
            if len(head) < LOCAL.size:
                return
            _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = LOCAL.unpack(head)
            name = self._file.read(name_length).decode("utf-8" if flags & UTF8 else "cp437", "replace")
            if end := self._known.get((start, name)):
                place = end
            elif not name.endswith("/"):
                self._file.seek(extra_length, 1)
                self.losses.places.append(f"{name[:100]!r} is not where its directory says, or not in it")
                member = Member(name=name, size=size, refused=refusal(name, is_file=True))
                if flags & (ENCRYPTED | SIZES_BEHIND) or ZIP64 in (packed, size) or method not in (0, 8):
                    member.refused = member.refused or "its size is only in the zip's directory, which is damaged"
                place = self._unpack(member, method, crc, packed) or place
                yield member

    def _unpack(self, member: Member, method: int, crc: int, packed: int) -> int | None:
        """Write a member's bytes where they are wanted; return where it ends, None if unknown."""
        begin, member.file = self._file.tell(), self._choose(member)
        if member.file is None:
            return None
        try:
            if _copy(_pieces(self._file, method, packed), member) == crc:
                return begin + packed
            self._damaged(member, "its checksum is wrong")
        except DAMAGE as error:
            self._damaged(member, f"it cannot be unpacked ({error})")
        return None

    def _damaged(self, member: Member, why: str) -> None:
        member.damage = why
        self.losses.places.append(f"{member.name[:100]!r}: {why}")


def _pieces(file: BinaryIO, method: int, packed: int) -> Iterator[bytes]:
    """Yield the contents of a member, in pieces of bounded size."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    while packed > 0 and (data := file.read(min(packed, COPY_BYTES))):
        packed -= len(data)
        if method == 0:
            yield data
            continue
        while data:
            yield inflate.decompress(data, COPY_BYTES)
            data = inflate.unconsumed_tail
    if method == 8:
        yield inflate.flush()


def _copy(pieces: Iterator[bytes], member: Member) -> int:
    """Write a member's bytes; return their CRC-32. Raises ValueError if their number differs from the header."""
    crc = count = 0
    with ScratchFile(member.file) as target:
        for piece in pieces:
            count += len(piece)
            if count > member.size:
                break
            crc = zlib.crc32(piece, crc)
            target.write(piece)
    if count != member.size:
        raise ValueError(f"it has not the {member.size:,} bytes that its header promises")
    return crc


def _find(file: BinaryIO, place: int) -> int | None:
    """Return the start of the next header from `place` on; None if there is none."""
    before = b""
    file.seek(place)
    while data := file.read(COPY_BYTES):
        window = before + data
        if match := re.search(re.escape(MAGIC), window):
            return file.tell() - len(window) + match.start()
        before = window[-len(MAGIC) + 1 :]
    return None
