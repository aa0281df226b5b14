"""Decodes the last picture shown at or before a time, starting where the bit stream allows it.

The pixels equal those of decoding everything. Packets before the last possible starting point are skipped, and in
H.264 non-reference pictures as well. Damage that the decoder reports on the way to the picture is an error: a picture
predicted from damaged ones looks intact.
"""

import bisect
import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av

from avpipe.pipeline.media.bitstream import FrameNumbers, restart_test, zeros_test
from avpipe.pipeline.media.container import COMPLAINT_CHARACTERS, complaints, prepare_decoder
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.survey import Clip

# Codecs with pictures that are never shown.
HIDDEN_PICTURES = {"vp8", "vp9", "av1"}
# Codecs without picture numbers: a lost picture only shows in the timestamps, whose steps are equal except the first.
STEADY, HOLE_STEPS = {"mpeg1video", "mpeg2video", "mpeg4"}, 1.5
# FFmpeg's own decoders of these read past the end of damaged data.
CHECKING_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Limit for the packets from the starting point to the picture; a 10 s clip has at most 4 MB.
MAX_WAY_BYTES = 2**29


def frame_at(clip: Clip, time_s: float) -> tuple[av.VideoFrame, float]:
    """Return (the last picture shown at or before `time_s`, its time), in seconds on the clip's timeline.

    Raises MediaError (corrupt) if it, or a picture that it depends on, is damaged or missing.
    """
    if not clip.stamped:
        return _by_order(clip, time_s)
    # The last tick that is not after the time. Durations are in microseconds: 4.8 s as a float is slightly less, and a
    # start rounded to microseconds may be half of one too early.
    wanted = clip.start + Fraction(time_s).limit_denominator(2_000_000) + Fraction(1, 2_000_000)
    frame = _by_stamp(clip, math.floor(wanted / clip.video.time_base))
    return frame, float(frame.pts * clip.video.time_base - clip.start)


def _by_stamp(clip: Clip, wanted_pts: int) -> av.VideoFrame:
    way, target = _way_to(clip, wanted_pts)
    with _decoding(clip) as decoder:
        frame = _last_until(decoder.frames(way[: way.index(target) + 1], only=target), wanted_pts)
    if frame is None or frame.pts != target.pts:
        # Packets that are not one picture each: fields, or pictures that are never shown.
        with _decoding(clip) as decoder:
            frame = _last_until(decoder.frames(way), wanted_pts)
    hidden = clip.video.codec_context.codec.canonical_name in HIDDEN_PICTURES
    if frame is None or (frame.pts != target.pts and not hidden):
        raise MediaError("corrupt", "the centre frame could not be decoded")
    return frame


def _way_to(clip: Clip, wanted_pts: int) -> tuple[list[av.Packet], av.Packet]:
    """Return (packets from the starting point to the last one shown by then, the packet of the wanted picture).

    Timestamps need not increase: segments of an edit list begin with packets that are decoded but not shown.
    """
    restarts = restart_test(clip.video.codec_context) or (lambda packet: False)
    way, begins, target, needed, size = [], [0], None, 0, 0
    for packet in clip.pictures():
        early = packet.pts is None or packet.pts <= wanted_pts
        shown = early and packet.pts is not None and not packet.is_discard
        if early and restarts(packet):
            if shown:
                way, begins, target, size = [], [], None, 0
            begins.append(len(way))
        if early or packet.dts is None or packet.dts <= wanted_pts:
            way.append(packet)
            size += packet.size
            if size > MAX_WAY_BYTES:
                raise MediaError("corrupt", f"no key frame in {MAX_WAY_BYTES:,} bytes before the centre")
        if shown:
            needed = len(way)
            if target is None or packet.pts >= way[target].pts:
                target = needed - 1
    if target is None:
        raise MediaError("corrupt", "no frame is shown before the centre")
    return way[max(begin for begin in begins if begin <= target) : needed], way[target]


def _last_until(frames: Iterator[av.VideoFrame], wanted_pts: int) -> av.VideoFrame | None:
    best = None
    for frame in frames:
        if frame.pts is not None and frame.pts <= wanted_pts and (best is None or frame.pts >= best.pts):
            best = frame
    return best


def _by_order(clip: Clip, time_s: float) -> tuple[av.VideoFrame, float]:
    """The same for files without presentation times, such as AVI: pictures are shown in decoder output order."""
    number = max(bisect.bisect_right(clip.order_s, time_s + 1e-6) - 1, 0)
    first = number if clip.video.codec_context.codec.intra_only else 0
    with _decoding(clip) as decoder:
        for count, frame in enumerate(decoder.frames(itertools.islice(clip.pictures(), first, None)), first):
            if count == number:
                return frame, clip.order_s[number]
    raise MediaError("corrupt", "the centre frame could not be decoded")


@contextlib.contextmanager
def _decoding(clip: Clip) -> Iterator["_Decoder"]:
    with complaints() as heard:
        yield _Decoder(clip.video, clip.stamped, heard)


def _checking_decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    """Return the stream's decoder, or another one, if available, that gives the same pixels and notices damage."""
    name = CHECKING_DECODERS.get(stream.codec_context.codec.canonical_name)
    return av.CodecContext.create(name, "r") if name in av.codecs_available else stream.codec_context


class _Decoder:
    """Decodes consecutive packets and raises MediaError for damage."""

    def __init__(self, stream: av.VideoStream, stamped: bool, complaints: list):
        self._context, self._complaints = _checking_decoder(stream), complaints
        if not self._context.is_open:
            prepare_decoder(self._context)
        self._context.flush_buffers()
        self._h264 = self._context.name == "h264"
        self._restarts, self._has_zeros = restart_test(stream.codec_context), zeros_test(stream.codec_context)
        self._steady, self._step = stamped and stream.codec_context.codec.canonical_name in STEADY, None
        self._numbers = FrameNumbers(stream.codec_context) if self._h264 else None

    def frames(self, packets: Iterable[av.Packet], only: av.Packet | None = None) -> Iterator[av.VideoFrame]:
        """Yield all frames in display order; with `only`, without non-reference frames.

        Only H.264 marks every non-reference frame. HEVC marks them only within a temporal layer, VP9 keeps the
        probabilities of frames that it drops, and libdav1d reads the option only when it is opened.
        """
        first = last = None
        for packet in packets:
            if self._has_hole(last, packet):
                raise MediaError("corrupt", "a frame before the centre is missing")
            if self._has_zeros(packet):
                raise MediaError("corrupt", "a frame before the centre is damaged: a part of it is zeros")
            first, last = first or packet, packet
            # The start of an edit-list segment: what the container calls a key frame.
            if packet.is_discard and packet.is_keyframe and self._restarts and not self._restarts(packet):
                raise MediaError("corrupt", "a piece of the edit list begins where decoding cannot")
            self._context.skip_frame = "NONREF" if self._h264 and only is not None and packet is not only else "DEFAULT"
            yield from self._checked(packet, leading=None not in (first.pts, packet.pts) and packet.pts < first.pts)
        yield from self._checked(None, leading=False)

    def _has_hole(self, last: av.Packet | None, packet: av.Packet) -> bool:
        """Whether time is missing between two packets of a codec with a constant frame rate."""
        if not self._steady or last is None or None in (last.dts, packet.dts):
            return False
        step = packet.dts - last.dts
        self._step = step if self._step is None else min(self._step, step)
        return step > HOLE_STEPS * self._step

    def _checked(self, packet: av.Packet | None, leading: bool) -> list[av.VideoFrame]:
        """Yield intact frames; missing pictures shown before the starting point are harmless."""
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError as error:
            if not leading:
                raise MediaError("corrupt", f"a frame before the centre is damaged: {error.strerror}") from None
            frames = []
        if leading:
            self._complaints.clear()
            return [frame for frame in frames if not frame.is_corrupt]
        if self._complaints or any(frame.is_corrupt for frame in frames):
            words = self._complaints[0][2].strip()[:COMPLAINT_CHARACTERS] if self._complaints else "the decoder says so"
            raise MediaError("corrupt", f"a frame before the centre is damaged: {words}")
        if packet is not None and self._numbers and self._numbers.lost_before(packet):
            raise MediaError("corrupt", "a frame before the centre is missing")
        return frames
