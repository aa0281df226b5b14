"""Members of a tar, or of several concatenated ones, from a stream that may be damaged anywhere.

Damage costs only the members that it touches: reading continues at the next header with a valid magic and checksum,
wherever it is. A tar has no checksums of its members' data. So a member is doubted if it is not followed by what has to
follow: inserted, missing or zeroed bytes may reach into it.
"""

import math
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from avpipe.pipeline.archives.lookahead import Window
from avpipe.pipeline.archives.packed import GapError, PackedStream, PlainStream
from avpipe.pipeline.archives.tar_headers import (
    BLOCK,
    LONG_NAME,
    MAGIC,
    MAGIC_PLACE,
    NAMING,
    PAX,
    parse_header,
    pax_facts,
    refusal,
    was_header,
)

MAX_NAME_BYTES = 1 << 20
# Tars are padded with zeros to full records, usually of the first size.
RECORDS_BYTES = (10_240, *(1 << power for power in range(14, 22)))
# This many zeros at the end of the last member are the hole of an incomplete download.
HOLE_BYTES = 4096
CUT_OFF = "the archive is cut off within it, or its size is wrong"


@dataclass(kw_only=True, slots=True)
class Member:
    """A file in an archive, as described by its header."""

    name: str
    size: int
    refused: str = ""
    """Why it cannot be a clip, whatever its contents; "" if it can."""
    file: Path | None = None
    """Where its bytes were written; None if not wanted."""
    damage: str = ""
    """Why its bytes cannot be trusted; "" if they can."""


@dataclass(kw_only=True, slots=True)
class Losses:
    """Damage found in an archive."""

    places: list[str] = field(default_factory=list)
    """Descriptions for users."""
    skipped: int = 0
    """Number of unpacked bytes skipped in search of a header."""


class TarReader:
    """Reads a stream once. `choose` returns where to write a member, None for nowhere."""

    def __init__(self, stream: PlainStream | PackedStream, choose: Callable[[Member], Path | None]):
        self.losses = Losses()
        self.plain = isinstance(stream, PlainStream)
        self._choose = choose
        self._window = Window(stream)
        self._last: _Read | None = None  # until it is known what follows it
        self._held: deque[_Read] = deque()  # until their checksum is verified
        self._tar_start = 0
        self._ended = False

    def members(self) -> Iterator[Member]:
        """Yield all members except folders, each once everything is known about its bytes."""
        more = True
        while more:
            try:
                header = self._next_header()
                self._hold_last()
                more = header is not None
                if more:
                    self._read(header)
            except GapError as gap:
                yield from self._lose(str(gap))
            while self._held and (self._held[0].member.file is None or self._held[0].end <= self._window.checked):
                yield self._held.popleft().member

    def _read(self, header: tarfile.TarInfo) -> None:
        """Write a member's bytes where they are wanted, or skip them."""
        window, padding = self._window, -header.size % BLOCK
        self._ended = False
        if header.isdir():
            return
        is_file = header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        member = Member(name=header.name, size=header.size, refused=refusal(header.name, is_file))
        self._last = last = _Read(member=member, start=window.place)
        member.file = self._choose(member)
        if window.left is not None and header.size > window.left:
            self._cut_off(last)
            window.back_to(last.start)
        elif member.file is None:
            window.skip(header.size + padding)
        else:
            came, last.zeros = window.copy(header.size, member.file)
            if came < header.size:
                self._cut_off(last)
            last.well_padded = not window.take(padding).strip(b"\0")
        last.end = window.place

    def _cut_off(self, last: "_Read") -> None:
        last.member.damage = CUT_OFF
        self.losses.places.append(f"{last.member.name[:100]!r} lacks some of its {last.member.size:,} bytes")

    def _next_header(self) -> tarfile.TarInfo | None:
        """Return the next member's header, with the facts of headers before it; None at the end of the stream."""
        name = size = None
        sparse = False
        while header := self._header_here() or self._search():
            if header.type not in NAMING:
                header.name = header.name if name is None else name
                header.size = header.size if size is None else size
                self._pass_sparse_map(header)
                if sparse:
                    header.type = tarfile.GNUTYPE_SPARSE
                return header
            self._hold_last()
            data = self._name_data(header.size)
            if header.type == LONG_NAME:
                name = data.split(b"\0")[0].decode("utf-8", "surrogateescape")
            elif header.type in PAX:
                name, size, sparse = pax_facts(data)
        return None

    def _name_data(self, size: int) -> bytes:
        """Return the contents of a header with a name; empty if it is longer than any name."""
        padded = size + -size % BLOCK
        if size <= MAX_NAME_BYTES:
            return self._window.take(padded)[:size]
        self._window.skip(padded)
        return b""

    def _pass_sparse_map(self, header: tarfile.TarInfo) -> None:
        """Skip the blocks that continue the header of a sparse file."""
        extended = header.type == tarfile.GNUTYPE_SPARSE and header._sparse_structs[1]
        while extended:
            block = self._window.take(BLOCK)
            extended = len(block) == BLOCK and block[504]

    def _header_here(self) -> tarfile.TarInfo | None:
        """Return the header at this position, after any zeros; None at the end, or if it is something else."""
        window, start = self._window, self._window.place
        if window.lost:
            return None
        block = window.peek(BLOCK)
        zeros = window.skip_zeros(BLOCK) if block and not block.strip(b"\0") else 0
        block = window.peek(BLOCK) if zeros else block
        if zeros:
            self._judge_zeros(start, zeros, at_end=not block)
        if not block:
            if not self._ended:
                self.losses.places.append("cut off: the mark of its end is missing")
            self._ended = True
            return None
        header = parse_header(block)
        if header is None:
            self._judge_misfit(block, behind_zeros=zeros > 0)
        else:
            window.take(BLOCK)
        return header

    def _judge_zeros(self, start: int, zeros: int, at_end: bool) -> None:
        """Decide whether zeros are the end marker of a tar, maybe followed by another one, or a hole."""
        last, place = self._last, self._window.place
        if at_end:
            is_mark = (
                any(zeros <= size + 2 * BLOCK and place % size == 0 for size in RECORDS_BYTES) or zeros <= 2 * BLOCK
            )
        else:
            is_mark = zeros == 2 * BLOCK or (zeros > BLOCK and (place - self._tar_start) % RECORDS_BYTES[0] == 0)
        self._tar_start, self._ended = place, True
        if not is_mark:
            self.losses.places.append(f"{zeros:,} zeros at byte {start:,}, where data is missing")
        if last and last.zeros >= (HOLE_BYTES if is_mark and at_end else 1):
            last.doubt("it ends in zeros, and zeros follow")
        elif last and not last.well_padded:
            last.doubt("bytes stand behind it that must be zeros")

    def _judge_misfit(self, block: bytes, behind_zeros: bool) -> None:
        """Decide what was lost if something else is in the place of a header."""
        last = self._last
        self.losses.places.append(f"no header at byte {self._window.place:,}")
        if last is None or behind_zeros:
            return
        if was_header(block) and last.well_padded and not (block[0] == 0 and last.zeros):
            return
        last.doubt("behind it stands something else than must stand there")
        self._window.back_to(last.start)  # if bytes are missing, the next header has already been read

    def _search(self) -> tarfile.TarInfo | None:
        """Skip damage until the next valid header; None at the end of the stream."""
        window = self._window
        while (passed := window.find(MAGIC, MAGIC_PLACE)) is not None:
            self.losses.skipped += passed
            header = parse_header(window.peek(BLOCK))
            window.take(BLOCK if header else 1)
            if header:
                window.lost = False
                return header
        window.lost, self._ended = False, True
        return None

    def _hold_last(self) -> None:
        if self._last is not None:
            self._held.append(self._last)
            self._last = None

    def _lose(self, why: str) -> Iterator[Member]:
        """Handle a gap: members within verified data are intact, the others are not."""
        self.losses.places.append(why)
        self.losses.skipped += self._window.lose()
        self._hold_last()
        while self._held:
            read = self._held.popleft()
            if read.end > self._window.checked:
                read.doubt(why)
            yield read.member


@dataclass(kw_only=True, slots=True)
class _Read:
    """A member whose bytes have been read."""

    member: Member
    start: int
    """Start of its data."""
    end: float = math.inf
    zeros: int = 0
    """At the end of its data."""
    well_padded: bool = True

    def doubt(self, why: str) -> None:
        self.member.damage = self.member.damage or why
