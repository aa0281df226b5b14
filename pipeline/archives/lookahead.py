"""Lookahead into a stream, for readers that have to search for a position to continue from."""

from pathlib import Path

from avpipe.pipeline.archives.packed import GapError, PackedStream, PlainStream
from avpipe.pipeline.core.untrusted_files import ScratchFile

COPY_BYTES = 1 << 18


class Window:
    """The bytes of a stream from `place` on. Its readers let GapError pass, and then call `lose`."""

    def __init__(self, stream: PlainStream | PackedStream):
        self._stream = stream
        self._bytes = bytearray()
        self.place = 0
        """Position in the stream; after a gap, the number of bytes received."""
        self.lost = False
        """Whether there was a gap, so that the kind of data here is unknown."""
        self._gap: GapError | None = None  # reached, but bytes before it are still unread
        self._again = self.left or 0  # bytes that may be read again; no file may make this quadratic

    @property
    def left(self) -> int | None:
        """Number of bytes left; None if unknown."""
        return self._stream.size - self.place if isinstance(self._stream, PlainStream) else None

    @property
    def checked(self) -> int:
        """Position up to which the checksums confirm all bytes."""
        return self._stream.checked

    def peek(self, count: int, least: int | None = None) -> bytes:
        """Return the next `count` bytes, unconsumed; fewer at the end, and before a gap if there are `least`."""
        while len(self._bytes) < count and self._gap is None:
            try:
                if not (data := self._stream.read()):
                    break
                self._bytes += data
            except GapError as gap:
                self._gap = gap
        if self._gap and len(self._bytes) < (count if least is None else least):
            gap, self._gap = self._gap, None
            raise gap
        return bytes(self._bytes[:count])

    def take(self, count: int, least: int | None = None) -> bytes:
        """Like `peek`, but consume the bytes."""
        data = self.peek(count, least)
        self._pass(len(data))
        return data

    def skip(self, count: int) -> None:
        """Skip `count` bytes, fewer at the end."""
        if self.left is not None and count > len(self._bytes):
            self._go_to(self.place + min(count, self.left))
            return
        while count > 0 and (data := self.take(min(count, COPY_BYTES), least=1)):
            count -= len(data)

    def copy(self, count: int, target: Path) -> tuple[int, int]:
        """Write the next `count` bytes to `target`; return how many there were, and how many zeros they end with."""
        zeros, left = 0, count
        with ScratchFile(target) as file:
            while left > 0 and (piece := self.take(min(left, COPY_BYTES), least=1)):
                file.write(piece)
                left -= len(piece)
                kept = piece.rstrip(b"\0")
                zeros = len(piece) - len(kept) + (0 if kept else zeros)
        return count - left, zeros

    def skip_zeros(self, block: int) -> int:
        """Skip full blocks of zeros; return the number of bytes skipped."""
        count = 0
        while (data := self.peek(COPY_BYTES, least=1)) and not data.strip(b"\0"):
            whole = len(data) - len(data) % block or len(data)
            self._pass(whole)
            count += whole
        zeros = len(data) - len(data.lstrip(b"\0"))
        zeros -= zeros % block
        self._pass(zeros)
        return count + zeros

    def find(self, mark: bytes, before: int) -> int | None:
        """Skip bytes until `mark` is `before` bytes ahead; return how many, or None if no mark follows."""
        passed = 0
        while self.peek(COPY_BYTES, least=1):
            place = self._bytes.find(mark, before)
            if place >= 0:
                step = place - before
            elif len(self._bytes) < COPY_BYTES:  # nothing follows, or a gap
                step = len(self._bytes)
            else:
                step = len(self._bytes) - before - len(mark)
            self._pass(step)
            passed += step
            if place >= 0:
                return passed
        return None

    def lose(self) -> int:
        """Discard what is left before a gap; return the number of bytes lost."""
        count = len(self._bytes)
        self._pass(count)
        self.lost = True
        return count

    def back_to(self, place: int) -> bool:
        """Seek back to an earlier position if the stream can; return whether it did."""
        self._again -= self.place - place
        if self.left is None or self._again < 0:
            return False
        self._go_to(place)
        return True

    def _pass(self, count: int) -> None:
        del self._bytes[:count]
        self.place += count

    def _go_to(self, place: int) -> None:
        self._stream.seek(place)
        self._bytes.clear()
        self.place = place
