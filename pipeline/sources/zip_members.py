"""The members of a zip: each has a checksum of its own, so a damaged place costs the members that it touches.

The directory stands at the end. Where it is damaged or cut off, the headers before the members are read instead.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.sources.files import ScratchFile
from pipeline.sources.tar_headers import refusal
from pipeline.sources.tar_members import Losses, Member
from pipeline.sources.window import COPY_BYTES

MAGIC = b"PK\x03\x04"
STARTS = (MAGIC, b"PK\x05\x06")
# What zipfile and its decoders raise for damage; RuntimeError also for kinds of packing that they do not know.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error)
LINK = 0o120000
LOCAL = struct.Struct("<4s5H3I2H")
ENCRYPTED, SIZES_BEHIND, UTF8 = 1, 8, 1 << 11
ZIP64 = 0xFFFFFFFF


class ZipReader:
    """Reads an open zip. `choose` says where a member's bytes are to be put, None for nowhere."""

    def __init__(self, file: BinaryIO, choose: Callable[[Member], Path | None]):
        self.losses = Losses()
        self._file, self._choose = file, choose
        self._known: dict[tuple[int, str], int] = {}  # where a header begins and the name in it: where its data ends

    def members(self) -> Iterator[Member]:
        """All members but folders; one that is damaged may come a second time, good."""
        try:
            directory = zipfile.ZipFile(self._file)
        except DAMAGE as error:
            self.losses.places.append(f"its directory is damaged or cut off ({error})")
        else:
            for entry in directory.infolist():
                yield from self._listed(directory, entry)
        yield from self._unlisted()

    def _listed(self, directory: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[Member]:
        """A member as the directory has it."""
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
        """Members by the headers before them that the directory has not, or has in a wrong place."""
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
                    member.refused = member.refused or "its facts stand in the zip's directory, which is damaged"
                place = self._unpack(member, method, crc, packed) or place
                yield member

    def _unpack(self, member: Member, method: int, crc: int, packed: int) -> int | None:
        """Put a member's bytes where they are wanted; returns where it ends, None where that is not sure."""
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
    """What a member holds, in pieces of bounded size."""
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
    """Write a member's bytes; returns their CRC-32. Raises ValueError where they are not as many as were promised."""
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
    """Where the next header begins, from `place` on; None where there is none."""
    before = b""
    file.seek(place)
    while data := file.read(COPY_BYTES):
        window = before + data
        if match := re.search(re.escape(MAGIC), window):
            return file.tell() - len(window) + match.start()
        before = window[-len(MAGIC) + 1 :]
    return None
