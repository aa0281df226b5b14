"""Reads the first bytes of coded pictures: whether decoding can start there, and H.264's frame numbers.

The key-frame flags of a container cannot be trusted: intra refresh, open GOPs and plain mistakes are all flagged as key
frames. So decoding starts only where the bit stream itself says that nothing before is referenced.
"""

import re
from collections.abc import Callable, Iterator

import av

# More than the header of any slice, and than the start of parameter sets up to the fields read here.
HEADER_BYTES = 64
H264_SLICE, H264_IDR, H264_SPS = 1, 5, 7
HEVC_IRAP = range(16, 22)  # BLA, IDR and CRA: pictures shown after one reference none decoded before it (H.265, 3.76)
HEVC_SLICES = range(32)
START_CODED = {"mpeg1video", "mpeg2video", "mpeg4"}
LOST = re.compile(rb"\0\0\0+[^\0\1]")
HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
AV1_FRAME_HEADER, AV1_FRAME, AV1_SEQUENCE = 3, 6, 1


class Bits:
    """Reads unsigned numbers from bytes, most significant bit first; reads zeros past the end."""

    def __init__(self, data: bytes):
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next `count` bits."""
        if count > self._left:
            self._value = self._left = 0
            return 0
        self._left -= count
        taken = self._value >> self._left
        self._value &= (1 << self._left) - 1
        return taken

    def golomb(self) -> int:
        """Return the next Exp-Golomb code ue(v) of H.264 (section 9.1)."""
        return max(self.take(2 * (self._left - self._value.bit_length()) + 1) - 1, 0)


def zeros_test(context: av.VideoCodecContext) -> Callable[[av.Packet], bool]:
    """Return a test for runs of zeros that the codec never writes: a block lost by a disk or a connection.

    Decoders take them for data. Three zero bytes in a row only occur before start codes and at the end: H.264, 7.4.1;
    H.265, 7.4.2; for older codecs ISO/IEC 13818-2, 6.2.1.
    """
    name, extradata = context.codec.canonical_name, context.extradata
    if name in ("h264", "hevc"):
        units = NalUnits(extradata, 4 if name == "h264" else 21)
        return lambda packet: any(map(_holds_lost, units.bodies(packet)))
    if name in START_CODED:
        return lambda packet: _holds_lost(memoryview(packet))
    return lambda packet: False


def _holds_lost(data: memoryview) -> bool:
    raw = bytes(data)
    return b"\0\0\0" in raw and LOST.search(raw) is not None  # ten times as fast as only the expression


class NalUnits:
    """Splits H.264 and HEVC packets into NAL units, by start codes or by length prefixes."""

    def __init__(self, extradata: bytes | None, length_at: int):
        """`length_at` is the byte of avcC or hvcC with the size of the length prefixes."""
        configured = bool(extradata) and extradata[0] == 1 and len(extradata) > length_at
        self._length_size = (extradata[length_at] & 3) + 1 if configured else 0

    def heads(self, packet: av.Packet) -> Iterator[bytes]:
        """Yield the first bytes of each unit, without emulation prevention bytes."""
        data = memoryview(packet)
        places = self._by_length(data) if self._length_size else _by_start_code(bytes(data))
        for place in places:
            yield bytes(data[place : place + HEADER_BYTES]).replace(b"\0\0\3", b"\0\0")

    def bodies(self, packet: av.Packet) -> Iterator[memoryview]:
        """Yield the bytes of each unit; with start codes, of all units together."""
        data = memoryview(packet)
        if not self._length_size:
            yield data
            return
        for place in self._by_length(data):
            size = int.from_bytes(data[place - self._length_size : place])
            yield data[place : place + size]

    def _by_length(self, data: memoryview) -> Iterator[int]:
        place, size = 0, self._length_size
        while place + size < len(data):
            yield place + size
            place += size + int.from_bytes(data[place : place + size])


def _by_start_code(data: bytes) -> Iterator[int]:
    place = data.find(b"\0\0\1")
    while 0 <= place < len(data) - 3:
        yield place + 3
        place = data.find(b"\0\0\1", place + 3)


def restart_test(context: av.VideoCodecContext) -> Callable[[av.Packet], bool] | None:
    """Return a test for packets where decoding can start; None for codecs without one.

    From such a packet on, every picture shown at its time or later is the same as when everything is decoded.
    """
    name = context.codec.canonical_name
    if context.codec.intra_only:
        return lambda packet: True
    if name == "h264":
        units = NalUnits(context.extradata, 4)
        return lambda packet: _first_type(units.heads(packet), 0x1F, 0, (H264_SLICE, H264_IDR)) == H264_IDR
    if name == "hevc":
        units = NalUnits(context.extradata, 21)
        return lambda packet: _first_type(units.heads(packet), 0x7E, 1, HEVC_SLICES) in HEVC_IRAP
    return SIMPLE_TESTS.get(name)


def _first_type(heads: Iterator[bytes], mask: int, shift: int, wanted) -> int | None:
    """Type of the first unit that belongs to a picture."""
    types = ((head[0] & mask) >> shift for head in heads if head)
    return next((kind for kind in types if kind in wanted), None)


def _vp8(packet: av.Packet) -> bool:
    data = bytes(memoryview(packet)[:1])
    return bool(data) and not data[0] & 1  # RFC 6386, 9.1


def _vp9(packet: av.Packet) -> bool:
    """VP9 bitstream specification, 6.2: marker, profile, show_existing_frame, frame_type."""
    bits = Bits(bytes(memoryview(packet)[:2]))
    if bits.take(2) != 2:
        return False
    profile = bits.take(1) | bits.take(1) << 1
    if profile == 3:
        bits.take(1)
    return not bits.take(1) and not bits.take(1)


def _av1(packet: av.Packet) -> bool:
    """AV1 specification, 5.3 to 5.9: a sequence header, then a shown key frame as the first frame."""
    data, place, sequence = bytes(packet), 0, False
    while place < len(data):
        head = data[place]
        kind, extended, sized = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        place += 1 + extended
        size, shift = 0, 0
        while sized and place < len(data):
            size |= (data[place] & 127) << shift
            place, shift = place + 1, shift + 7
            if not data[place - 1] & 128:
                break
        if kind in (AV1_FRAME, AV1_FRAME_HEADER):
            bits = Bits(data[place : place + 1])
            return sequence and not bits.take(1) and bits.take(2) == 0 and bits.take(1) == 1
        sequence = sequence or kind == AV1_SEQUENCE
        place = place + size if sized else len(data)
    return False


def _mpeg4(packet: av.Packet) -> bool:
    data = bytes(packet)
    place = data.find(b"\0\0\1\xb6")
    return 0 <= place < len(data) - 4 and data[place + 4] >> 6 == 0  # an I-VOP: ISO/IEC 14496-2, 6.2.5


def _mpeg12(packet: av.Packet) -> bool:
    """An I picture after a sequence header, which a decoder needs to start: ISO/IEC 13818-2, 6.2."""
    data = bytes(packet)
    place = data.find(b"\0\0\1\0")
    return 0 <= data.find(b"\0\0\1\xb3") < place < len(data) - 5 and data[place + 5] >> 3 & 7 == 1


SIMPLE_TESTS = {
    "vp8": _vp8,
    "vp9": _vp9,
    "av1": _av1,
    "mpeg4": _mpeg4,
    "mpeg1video": _mpeg12,
    "mpeg2video": _mpeg12,
}


class FrameNumbers:
    """Follows H.264's frame_num (7.4.3), which grows by one with every reference picture, so a lost one leaves a gap.

    A decoder silently fills the gap with a copy of the previous picture.
    """

    def __init__(self, context: av.VideoCodecContext):
        self._units = NalUnits(context.extradata, 4)
        self._bits: int | None = None
        self._may_gap = False
        self._last: int | None = None
        extradata = context.extradata or b""
        if extradata[:1] == b"\1":
            self._learn(extradata[8 : 8 + HEADER_BYTES].replace(b"\0\0\3", b"\0\0"))

    def lost_before(self, packet: av.Packet) -> bool:
        """Whether pictures are missing between this packet and the previous one."""
        for head in self._units.heads(packet):
            kind = head[0] & 0x1F if head else 0
            if kind == H264_SPS:
                self._learn(head)
            elif kind in (H264_SLICE, H264_IDR):
                return self._follow(head, kind)
        return False

    def _follow(self, head: bytes, kind: int) -> bool:
        if self._bits is None or self._may_gap:
            return False
        bits = Bits(head[1:])
        for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
            bits.golomb()
        number, last = bits.take(self._bits), self._last
        if kind == H264_IDR or last is None:
            lost = False
        else:
            lost = number not in (last, (last + 1) % (1 << self._bits))
        if head[0] & 0x60:  # a reference picture
            self._last = number
        return lost

    def _learn(self, sps: bytes) -> None:
        """Read log2_max_frame_num from a sequence parameter set (7.3.2.1); None if it has scaling matrices."""
        profile, bits = sps[1] if len(sps) > 1 else 0, Bits(sps[4:])
        bits.golomb()
        known = True
        if profile in HIGH_PROFILES:
            chroma = bits.golomb()
            known = chroma != 3 or not bits.take(1)
            bits.golomb(), bits.golomb(), bits.take(1)
            known = known and not bits.take(1)
        if not known:
            self._bits = None
            return
        self._bits = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1), bits.golomb(), bits.golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.golomb()
        bits.golomb()
        self._may_gap = bool(bits.take(1))
