"""A decoder of one gzip member that returns all its bytes before it reports a wrong checksum."""

import struct
import zlib

HEADER_BYTES, TRAILER_BYTES = 10, 8
HEADER_CRC, EXTRA, NAME, COMMENT = 2, 4, 8, 16
# Names and comments are short; anything longer is not a header.
MAX_HEADER_BYTES = 1 << 17


class GzipDecoder:
    """Has the interface of the decoders of bz2 and lzma. Raises ValueError or zlib.error for damage."""

    def __init__(self):
        self.needs_input, self.eof, self.unused_data = True, False, b""
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._before, self._in_header = b"", True
        self._crc = self._length = 0

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Add `data` to the input and return at most `max_length` more bytes."""
        self._before += data
        if self._in_header and not self._pass_header():
            return b""
        out = b""
        if not self._inflate.eof:
            out = self._inflate.decompress(self._before, max_length)
            self._crc, self._length = zlib.crc32(out, self._crc), self._length + len(out)
            self._before = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        self.needs_input = not self._before and len(out) < max_length
        if self._inflate.eof and not out:
            self._compare_trailer()
        return out

    def _pass_header(self) -> bool:
        """Drop the header once it is complete; return whether it was."""
        end = _header_end(self._before)
        if end is None:
            if len(self._before) > MAX_HEADER_BYTES:
                raise ValueError("its header does not end")
            return False
        self._before, self._in_header = self._before[end:], False
        return True

    def _compare_trailer(self) -> None:
        if len(self._before) < TRAILER_BYTES:
            self.needs_input = True
            return
        crc, length = struct.unpack("<2I", self._before[:TRAILER_BYTES])
        if crc != self._crc or length != self._length & 0xFFFFFFFF:
            raise ValueError("the checksum at its end is wrong")
        self.eof, self.unused_data = True, self._before[TRAILER_BYTES:]


def _header_end(data: bytes) -> int | None:
    """Return the length of the header; None if it is incomplete."""
    if len(data) < HEADER_BYTES:
        return None
    flags, end = data[3], HEADER_BYTES
    if flags & EXTRA:
        if len(data) < end + 2:
            return None
        end += 2 + int.from_bytes(data[end : end + 2], "little")
    for flag in (NAME, COMMENT):
        if flags & flag:
            zero = data.find(b"\0", end)
            if zero < 0:
                return None
            end = zero + 1
    end += 2 if flags & HEADER_CRC else 0
    return end if end <= len(data) else None
