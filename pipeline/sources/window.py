"""A look ahead into a stream, for readers that must search for the place where they can go on."""

from pathlib import Path

from pipeline.sources.files import ScratchFile
from pipeline.sources.packed import GapError, PackedStream, PlainStream

COPY_BYTES = 1 << 18


class Window:
    """The bytes of a stream from `place` on. What reads it passes GapError through, and calls `lose` then."""

    def __init__(self, stream: PlainStream | PackedStream):
        self._stream = stream
        self._bytes = bytearray()
        self.place = 0
        """Bytes of the stream that are passed; behind a gap, of those that came."""
        self.lost = False
        """Whether a gap was met, so that nobody knows what must stand here."""
        self._gap: GapError | None = None  # met, but bytes before it are not passed yet
        self._again = self.left or 0  # bytes to which it may go back; no file may make this quadratic

    @property
    def left(self) -> int | None:
        """Bytes that are still to come; None where nobody knows."""
        return self._stream.size - self.place if isinstance(self._stream, PlainStream) else None

    @property
    def checked(self) -> int:
        """The place up to which all bytes are right, as far as their checksums say."""
        return self._stream.checked

    def peek(self, count: int, least: int | None = None) -> bytes:
        """The next `count` bytes, which stay; fewer at the end, and before a gap, if there are `least`."""
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
        """As `peek`, but the bytes are passed."""
        data = self.peek(count, least)
        self._pass(len(data))
        return data

    def skip(self, count: int) -> None:
        """Pass `count` bytes; fewer at the end."""
        if self.left is not None and count > len(self._bytes):
            self._go_to(self.place + min(count, self.left))
            return
        while count > 0 and (data := self.take(min(count, COPY_BYTES), least=1)):
            count -= len(data)

    def copy(self, count: int, target: Path) -> tuple[int, int]:
        """Write the next `count` bytes into `target`; returns how many came, and how many zeros are at their end."""
        zeros, left = 0, count
        with ScratchFile(target) as file:
            while left > 0 and (piece := self.take(min(left, COPY_BYTES), least=1)):
                file.write(piece)
                left -= len(piece)
                kept = piece.rstrip(b"\0")
                zeros = len(piece) - len(kept) + (0 if kept else zeros)
        return count - left, zeros

    def skip_zeros(self, block: int) -> int:
        """Pass whole blocks of zeros; returns the number of bytes passed."""
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
        """Pass bytes until `mark` stands `before` bytes ahead; returns how many, or None where no mark follows."""
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
        """A gap was met: forget what was seen before it; returns the number of bytes that are lost so."""
        count = len(self._bytes)
        self._pass(count)
        self.lost = True
        return count

    def back_to(self, place: int) -> bool:
        """Go back to an earlier place, where the stream can; returns whether it did."""
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
