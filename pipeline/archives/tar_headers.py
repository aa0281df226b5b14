"""Tar headers, parsed by tarfile, and what avpipe needs of them."""

import re
import tarfile
from pathlib import PurePosixPath

BLOCK = tarfile.BLOCKSIZE
# Offset of the magic in a header.
MAGIC, MAGIC_PLACE = b"ustar", 257
# No member is larger: a header that claims more is damaged.
MAX_MEMBER_BYTES = 1 << 40
LONG_NAME = tarfile.GNUTYPE_LONGNAME
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# Types of headers with names or other facts of the next member.
NAMING = (LONG_NAME, tarfile.GNUTYPE_LONGLINK, *PAX, tarfile.XGLTYPE)
WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
PAX_RECORD = re.compile(rb"([0-9]{1,20}) ([^=]+)=")
# mode, uid, gid, size, mtime and checksum
OCTAL_FIELDS = ((100, 108), (108, 116), (116, 124), (124, 136), (136, 148), (148, 156))
OCTAL = re.compile(rb"[0-7 \0]+")


def parse_header(block: bytes) -> tarfile.TarInfo | None:
    """Return the header in a block of 512 bytes; None if its checksum or its values are wrong."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    if header.type in WITHOUT_DATA:
        header.size = 0
    return header if 0 <= header.size <= MAX_MEMBER_BYTES else None


def was_header(block: bytes) -> bool:
    """Whether a block looks like a damaged header, unlike the bytes of a video."""
    fields = [bool(OCTAL.fullmatch(block[start:end])) for start, end in OCTAL_FIELDS]
    marks = [block[MAGIC_PLACE : MAGIC_PLACE + len(MAGIC)] == MAGIC, not block[500:].strip(b"\0")]
    return bool(block.strip(b"\0")) and sum(fields + marks) >= 6


def pax_facts(data: bytes) -> tuple[str | None, int | None, bool]:
    """Return (name, size, whether the member is sparse) of a pax header; None for what it does not say."""
    records, place = {}, 0
    while match := PAX_RECORD.match(data, place):
        length = int(match[1])
        records[match[2]] = data[match.end() : place + length - 1]
        if length <= match.end() - place:
            break
        place += length
    name, size = records.get(b"path"), records.get(b"size", b"")
    return (
        None if name is None else name.decode("utf-8", "surrogateescape"),
        int(size) if size.isdigit() and len(size) < 20 else None,
        any(key.startswith(b"GNU.sparse") for key in records),
    )


def refusal(name: str, is_file: bool) -> str:
    """Return why a member cannot be a clip, whatever its contents; "" if it can."""
    path = PurePosixPath(name)
    if not is_file:
        return "not a regular file"
    if path.is_absolute() or ".." in path.parts:
        return "its path leads out of the folder"
    return ""
