"""Opens an untrusted media file, chooses the streams that a player shows, and lays their packets on one time line.

Times are presentation times in seconds from the container's start, as in every player: 0 is where the first picture or
sound is shown. What an edit list hides does not count, nor does a stream's first time stamp; a transport stream whose
clock jumps goes on where it was, as in ffmpeg.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.logging
from av.codec.context import Flags as CodecFlags
from av.format import Flags as FormatFlags
from av.stream import Disposition

from pipeline.media.errors import MediaError
from pipeline.media.truncation import cut_off

# Untrusted files: no format that names other files (playlists, concat scripts, image sequences), no network.
CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,flv,mpegts,mpeg,ogg,asf"}
# What is read to find the streams of a file whose streams begin late; 5 s and 5 MB otherwise.
LONG_PROBE = {"probesize": str(2**26), "analyzeduration": str(120 * 10**6)}
MAX_STREAMS = 32
# 8192 x 8192; a decoder holds up to 17 frames of 1.5 to 6 bytes a pixel.
MAX_PIXELS = 2**26
# Packets of a file that are kept in memory; those of a 10 s clip are 4 MB at most. Of longer files they are read again.
HELD_BYTES = 2**26
# Seconds by which streams end before or after one another, and before what the file declares, for no deeper reason.
END_TOLERANCE_S = 0.5
AVI_TOLERANCE_S = 0.1
COMPLAINT_CHARACTERS = 80
# Of a file that breaks off, pictures decoded later may be shown earlier than the last one that is there, by so much.
REORDER_S = 0.5
# ffmpeg's own limits (fftools, ts_discontinuity_detect): a step back by more, or one ahead by more, is a new clock.
CLOCK_BACK_S, CLOCK_AHEAD_S = 0.1, 10
# Formats that say in a header how long they are; of others FFmpeg looks at the end that is there.
MP4, MATROSKA, AVI = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"
HEADER_LENGTHS = (MP4, MATROSKA, "asf")
# These state the length of every stream; others state one for the file, which FFmpeg then copies to its streams.
STREAM_LENGTHS = (MP4, AVI)


def open_media(path: Path, probe: dict | None = None) -> av.container.InputContainer:
    """Open an untrusted file: no format that names other files, no network, no boundless pictures."""
    # The limit on pixels is that of the decoders that look into the streams while the file is opened.
    options = {"max_pixels": str(MAX_PIXELS)} | (probe or {})
    return av.open(f"file:{path}", metadata_errors="replace", container_options=CONTAINER_OPTIONS, options=options)


@contextlib.contextmanager
def decodable() -> Iterator[None]:
    """Within the block what FFmpeg cannot read becomes a MediaError; a file that is not there stays what it is."""
    try:
        yield
    except FileNotFoundError:  # FFmpeg's is one too, and says nothing about the clip
        raise
    except av.error.FFmpegError as error:
        raise MediaError("corrupt", f"not decodable: {error.strerror}") from error


def prepare_decoder(context: av.CodecContext, threads: str | None = None) -> None:
    """Settings of a decoder before its first packet; `threads` AUTO for as many as there are cores, of one process."""
    if threads:
        context.thread_type = threads
    else:
        context.thread_count = 1  # workers are processes; frame threads would also delay skip_frame
    if context.type == "video":
        context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size midway
        context.flags |= CodecFlags.unaligned  # else a crop at the left is moved to where copying is quicker


@contextlib.contextmanager
def complaints() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg reports as an error within the block: (level, who, what)."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as heard:
            yield heard
    finally:
        av.logging.set_level(None)


def shown_streams(container: av.container.InputContainer) -> tuple[av.VideoStream, av.AudioStream]:
    """The streams that a player shows: of those that can be decoded the default ones, of these the largest picture and
    the most channels. Raises MediaError where there is none.
    """
    if len(container.streams) > MAX_STREAMS:
        raise MediaError("corrupt", f"{len(container.streams)} streams are no clip's")
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    video = _choose(videos, "video", lambda stream: stream.width * stream.height)
    audio = _choose(list(container.streams.audio), "audio", lambda stream: stream.channels)
    if video.width * video.height > MAX_PIXELS:
        raise MediaError("corrupt", f"frames of {video.width}x{video.height} pixels are no clip's")
    return video, audio


def _choose(streams: list, kind: str, size) -> av.stream.Stream:
    if not streams:
        raise MediaError(f"no_{kind}", f"the file has no {kind} stream")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise MediaError("setup", f"this FFmpeg has no decoder for the {kind} stream; a newer PyAV may have one")
    return max(decodable, key=lambda stream: (bool(stream.disposition & Disposition.default), size(stream)))


@dataclass(kw_only=True)
class Extent:
    """From when to when a stream is shown, seconds of the file's own clock; None before its first packet."""

    start: Fraction | None = None
    end: Fraction | None = None

    def add(self, packet: av.Packet) -> None:
        """Take in the time of one packet."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.is_discard:
            return
        start, end = stamp * packet.time_base, (stamp + (packet.duration or 0)) * packet.time_base
        self.start = start if self.start is None else min(self.start, start)
        self.end = end if self.end is None else max(self.end, end)


@dataclass(kw_only=True)
class Clip:
    """An open file with the packets of the picture and the sound that a player shows."""

    path: Path
    container: av.container.InputContainer
    video: av.VideoStream
    audio: av.AudioStream
    start: Fraction
    """Time stamp of the first picture or sound shown, seconds of the file's own clock."""
    picture: Extent = field(default_factory=Extent)
    sound: Extent = field(default_factory=Extent)
    duration_s: float = 0.0
    """Seconds from the start to where picture and sound have both ended."""
    broken: bool = False
    """Whether the file breaks off before what it declares."""
    order_s: list[float] = field(default_factory=list)
    """When the pictures are shown, one after the other, of a file without presentation times; else empty."""
    damage: tuple[Fraction, str] | None = None
    """Up to where, on the file's own clock, it was read before FFmpeg found it damaged, and what it said."""
    late_streams: bool = False
    """Whether streams that appear in the course of the file are passed by."""
    _held: list[av.Packet] | None = None

    def packets(self) -> Iterator[av.Packet]:
        """The packets of both streams with data, in the file's order, with stamps of one clock."""
        if self._held is not None:
            yield from self._held
            return
        with open_media(self.path) as again:
            yield from _demux(again, self)

    def pictures(self) -> Iterator[av.Packet]:
        """The packets of the picture."""
        return (packet for packet in self.packets() if packet.stream_index == self.video.index)

    def sounds(self) -> Iterator[av.Packet]:
        """The packets of the sound."""
        return (packet for packet in self.packets() if packet.stream_index == self.audio.index)

    def note_damage(self, words: str) -> None:
        """Remember where reading has come to."""
        ends = [self.start if extent.end is None else extent.end for extent in (self.picture, self.sound)]
        self.damage = min(ends), words.strip()[:COMPLAINT_CHARACTERS]

    def check_until(self, centre_s: float, until_s: float) -> None:
        """Raise MediaError unless the picture reaches `centre_s` and the sound `until_s` without damage before that."""
        if missing := self._missing_picture(centre_s) or self._missing_sound(until_s):
            raise MediaError("corrupt", missing)
        if self.damage and float(self.damage[0] - self.start) < min(until_s, self.duration_s - END_TOLERANCE_S):
            raise MediaError("corrupt", f"the file is damaged: {self.damage[1]}")

    @property
    def stamped(self) -> bool:
        """Whether every packet of the picture says when it is shown."""
        return not self.order_s

    def _missing_picture(self, centre_s: float) -> str | None:
        """In words, if the picture ends before the centre for no good reason; else None."""
        return self._missing("video", self.video, self.picture, centre_s, REORDER_S)

    def _missing_sound(self, until_s: float) -> str | None:
        """In words, if the sound ends before `until_s` for no good reason; else None."""
        return self._missing("audio", self.audio, self.sound, until_s, 0.0)

    def _missing(self, name: str, stream, extent: Extent, wanted_s: float, reorder_s: float) -> str | None:
        if extent.end is None:
            return None
        end_s = float(extent.end - self.start)
        if self.broken and end_s < min(wanted_s + reorder_s, self.duration_s - END_TOLERANCE_S):
            return f"the file breaks off: {name} ends at {end_s:.2f} s of {self.duration_s:.2f} s"
        declared_s = _declared_end_s(self.container, stream, self.start)
        if declared_s is not None and end_s < min(declared_s, wanted_s) - END_TOLERANCE_S:
            return f"{name} ends at {end_s:.2f} s of {declared_s:.2f} s"
        return None


def _declared_end_s(container, stream, start: Fraction) -> float | None:
    if container.format.name not in STREAM_LENGTHS or not stream.duration:
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base - start)


@contextlib.contextmanager
def open_clip(path: Path) -> Iterator[Clip]:
    """Read all packets of a file, decode none. Raises MediaError with the ledger's reason, and FileNotFoundError."""
    with decodable():
        try:
            clip = _survey(path, None)
        except IndexError:  # a stream that was not there when the file was opened; it may be the one wanted
            clip = _survey(path, LONG_PROBE)
        with clip.container:
            yield clip


class _Stamps:
    """Decoding times of a stream's packets, and whether all have presentation times, from the first that has one on."""

    def __init__(self, guessed: bool):
        self.decoded: list[int | None] = []
        self._guessed, self._seen, self._lacking = guessed, False, False

    def add(self, packet: av.Packet) -> None:
        self.decoded.append(packet.dts)
        self._lacking = self._lacking or (self._seen and packet.pts is None)
        self._seen = self._seen or packet.pts is not None

    @property
    def complete(self) -> bool:
        return self._seen and not self._lacking and not self._guessed


def _survey(path: Path, probe: dict | None) -> Clip:
    with contextlib.ExitStack() as stack:
        with complaints() as heard:
            container = stack.enter_context(open_media(path, probe))
        video, audio = shown_streams(container)
        start = Fraction(container.start_time or 0, av.time_base)
        clip = Clip(path=path, container=container, video=video, audio=audio, start=start, late_streams=bool(probe))
        if heard and container.format.name not in HEADER_LENGTHS:  # it was read on and on to find its streams
            clip.note_damage(heard[0][2])
        held, held_bytes, stamps = [], 0, _Stamps(guessed=container.format.name == AVI)
        with complaints() as heard:
            for packet in _demux(container, clip):
                if heard and clip.damage is None:
                    clip.note_damage(heard[0][2])
                if packet.stream_index == video.index:
                    clip.picture.add(packet)
                    stamps.add(packet)
                else:
                    clip.sound.add(packet)
                held_bytes += packet.size
                if held_bytes <= HELD_BYTES:
                    held.append(packet)
        clip._held = held if held_bytes <= HELD_BYTES else None
        if not stamps.complete:
            clip.order_s = _shown_in_order(clip, stamps.decoded)
        _settle_duration(clip)
        stack.pop_all()
        return clip


def _settle_duration(clip: Clip) -> None:
    """Duration out of what the file declares and what its packets say; they differ where a file breaks off, where
    another stream is longer, and where it was written by a recorder that could not know.
    """
    if clip.picture.end is None:
        raise MediaError("no_video", "the video stream holds no frames")
    if clip.sound.end is None:
        raise MediaError("no_audio", "the audio stream holds no samples")
    measured_s = float(max(clip.picture.end, clip.sound.end) - clip.start)
    declared_s = _declared_s(clip, measured_s)
    late = declared_s - measured_s > END_TOLERANCE_S
    clip.broken = clip.broken or cut_off(clip.path) or (late and len(clip.container.streams) == 2)
    if clip.broken and not late and clip.container.format.name not in HEADER_LENGTHS:
        raise MediaError("corrupt", f"the file breaks off at {measured_s:.2f} s and does not say how long it was")
    if clip.container.format.name == AVI and declared_s - measured_s > AVI_TOLERANCE_S:
        # Its chunks have no times: what is lost moves all that comes behind it.
        raise MediaError("corrupt", f"{measured_s:.2f} s of the {declared_s:.2f} s that the file declares are there")
    apart = abs(declared_s - measured_s) > END_TOLERANCE_S
    clip.duration_s = max(declared_s, measured_s) if clip.broken else measured_s if apart else declared_s
    if clip.duration_s <= 0:
        raise MediaError("corrupt", "the file has no duration")


def _declared_s(clip: Clip, measured_s: float) -> float:
    """Seconds that the file declares, `measured_s` where it declares none."""
    declared = clip.container.duration
    if not declared or declared <= 0:
        return measured_s
    ends_s = [_declared_end_s(clip.container, stream, clip.start) for stream in (clip.video, clip.audio)]
    declared_s = declared / av.time_base
    if None not in ends_s and abs(max(ends_s) - declared_s) > END_TOLERANCE_S:
        return max(ends_s)
    if clip.container.format.name == MATROSKA:  # it counts from 0, not from the first stamp
        declared_s -= max(float(clip.start), 0.0)
    return declared_s


def _shown_in_order(clip: Clip, stamps: list[int | None]) -> list[float]:
    """When pictures are shown that come without presentation times: one a tick, in the decoder's order.

    A tick without a picture shows the one before again, but not behind the first picture, nor anywhere in a stream with
    reordered pictures: there an encoder that looks ahead had nothing to write yet.
    """
    step = max(1, round(1 / (clip.video.time_base * (clip.video.average_rate or 25))))
    stamps = [None if clip.video.codec_context.has_b_frames and k else stamp for k, stamp in enumerate(stamps)]
    late = stamps[1] - stamps[0] - step if len(stamps) > 1 and None not in stamps[:2] else 0
    ticks: list[int] = []
    for stamp in stamps:
        following = ticks[-1] + step if ticks else stamp or 0
        ticks.append(following if stamp is None else max(stamp - late, following))
    return [float(tick * clip.video.time_base - clip.start) for tick in ticks]


def _demux(container: av.container.InputContainer, clip: Clip) -> Iterator[av.Packet]:
    """Packets with data, of one clock; a file that cannot be read on ends here and is `broken`."""
    streams = [container.streams[stream.index] for stream in (clip.video, clip.audio)]
    clock = _Clock() if container.format.flags & FormatFlags.ts_discont.value else None
    try:
        for packet in _of_known_streams(container, streams, skip=clip.late_streams):
            if packet.size:
                if clock:
                    clock.correct(packet)
                yield packet
    except av.error.FFmpegError:
        clip.broken = True


def _of_known_streams(container, streams: list, skip: bool) -> Iterator[av.Packet]:
    """Packets of these streams; one of a stream that was not there at the start is passed by or raises IndexError."""
    while True:
        try:
            yield from container.demux(streams)
            return
        except IndexError:
            if not skip:
                raise


class _Clock:
    """Joins the clocks of a stream whose stamps jump, as ffmpeg does for formats that may."""

    def __init__(self):
        self._shift = Fraction(0)
        self._next: dict[int, Fraction] = {}

    def correct(self, packet: av.Packet) -> None:
        """Move the stamps of a packet onto the first clock."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return
        expected, time = self._next.get(packet.stream_index), stamp * packet.time_base + self._shift
        if expected is not None and not -CLOCK_BACK_S < time - expected < CLOCK_AHEAD_S:
            self._shift += expected - time
            time = expected
        ticks = round(self._shift / packet.time_base)
        packet.dts = None if packet.dts is None else packet.dts + ticks
        packet.pts = None if packet.pts is None else packet.pts + ticks
        self._next[packet.stream_index] = time + (packet.duration or 0) * packet.time_base
