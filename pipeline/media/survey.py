"""Reads all packets of a file without decoding, and puts them on one timeline.

Times are presentation times in seconds from the container's start, as in every player: 0 is the first picture or sound
shown. What an edit list hides does not count, nor does a stream's first timestamp; a transport stream whose clock jumps
continues where it was, as in ffmpeg.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
from av.format import Flags as FormatFlags

from avpipe.pipeline.media.container import (
    AVI,
    COMPLAINT_CHARACTERS,
    END_TOLERANCE_S,
    INDEXED,
    MATROSKA,
    MP4,
    TS,
    complaints,
    decodable,
    open_media,
    shown_streams,
)
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.timeline import Clock, Extent, Stamps, shown_in_order
from avpipe.pipeline.media.truncation import cut_off

# Probe size for files whose streams begin late; otherwise 5 s and 5 MB.
LONG_PROBE = {"probesize": str(2**26), "analyzeduration": str(120 * 10**6)}
# Limit of packets kept in memory; a 10 s clip has at most 4 MB. Longer files are read again.
HELD_BYTES = 2**26
# In a truncated file, missing pictures may belong this much before the last one present (reordering).
REORDER_S = 0.5
# Formats that declare the duration of every stream; for others FFmpeg copies that of the file to the streams.
STREAM_LENGTHS = (MP4, AVI)


@dataclass(kw_only=True)
class Clip:
    """An open file with the packets of the video and audio streams that a player shows."""

    path: Path
    container: av.container.InputContainer
    video: av.VideoStream
    audio: av.AudioStream
    start: Fraction
    """Timestamp of the first picture or sound shown, seconds on the file's own clock."""
    picture: Extent
    sound: Extent
    duration_s: float = 0.0
    """Seconds from the start until both picture and sound have ended."""
    broken: bool = False
    """Whether the file ends before its declared end."""
    order_s: list[float] = field(default_factory=list)
    """Display times of the pictures of a file without presentation times; else empty."""
    damage: tuple[Fraction, str] | None = None
    """Time, on the file's own clock, at which FFmpeg first reported damage, and its message."""
    late_streams: bool = False
    """Whether streams that appear later in the file are skipped."""
    _held: list[av.Packet] | None = None

    def packets(self) -> Iterator[av.Packet]:
        """Yield the non-empty packets of both streams in file order, with timestamps of one clock."""
        if self._held is not None:
            yield from self._held
            return
        with open_media(self.path) as again:
            yield from _demux(again, self)

    def pictures(self) -> Iterator[av.Packet]:
        """Yield the video packets."""
        return (packet for packet in self.packets() if packet.stream_index == self.video.index)

    def sounds(self) -> Iterator[av.Packet]:
        """Yield the audio packets."""
        return (packet for packet in self.packets() if packet.stream_index == self.audio.index)

    def is_cut(self, packet: av.Packet) -> bool:
        """Whether the container flags a packet as incomplete; MPEG-TS also flags those after a splice."""
        return packet.is_corrupt and self.container.format.name != TS

    def note_damage(self, words: str) -> None:
        """Record the reported damage with the current position."""
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
        """Whether every video packet has a presentation time."""
        return not self.order_s

    def _missing_picture(self, centre_s: float) -> str | None:
        """Describe a picture that ends before the centre for no good reason; else None."""
        return self._missing("video", self.video, self.picture, centre_s, REORDER_S)

    def _missing_sound(self, until_s: float) -> str | None:
        """Describe a sound that ends before `until_s` for no good reason; else None."""
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


@contextlib.contextmanager
def open_clip(path: Path) -> Iterator[Clip]:
    """Read all packets of a file, decode none. Raises MediaError with the ledger's reason, and FileNotFoundError."""
    with decodable():
        clip = _survey_all(path)
        with clip.container:
            yield clip


def _survey_all(path: Path) -> Clip:
    try:
        return _survey(path, None)
    except IndexError:  # a stream that appeared after opening; it may be the wanted one
        pass
    except MediaError as error:
        if error.reason not in ("no_video", "no_audio"):
            raise
    return _survey(path, LONG_PROBE)


def _survey(path: Path, probe: dict | None) -> Clip:
    with contextlib.ExitStack() as stack:
        with complaints() as heard:
            container = stack.enter_context(open_media(path, probe))
        video, audio = shown_streams(container)
        start = Fraction(container.start_time or 0, av.time_base)
        extents = {"picture": Extent(video), "sound": Extent(audio)}
        streams = {"container": container, "video": video, "audio": audio}
        clip = Clip(path=path, **streams, **extents, start=start, late_streams=bool(probe))
        # In the headers or the probed data; in a truncated file those are intact.
        if heard and not (container.format.name in INDEXED and cut_off(path)):
            clip.note_damage(heard[0][2])
        held, held_bytes, stamps = [], 0, Stamps(guessed=container.format.name == AVI)
        with complaints() as heard:
            for packet in _demux(container, clip):
                if clip.damage is None and (heard or clip.is_cut(packet)):
                    clip.note_damage(heard[0][2] if heard else "a packet is not whole")
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
            clip.order_s = shown_in_order(video, start, stamps.decoded)
        _settle_duration(clip)
        stack.pop_all()
        return clip


def _settle_duration(clip: Clip) -> None:
    """Set the duration from the declared one and from the packets. They differ if the file is truncated, if another
    stream is longer, or if a live recorder could not know it.
    """
    if clip.picture.end is None:
        raise MediaError("no_video", "the video stream holds no frames")
    if clip.sound.end is None:
        raise MediaError("no_audio", "the audio stream holds no samples")
    measured_s = float(max(clip.picture.end, clip.sound.end) - clip.start)
    declared_s = _declared_s(clip)
    late = declared_s is not None and declared_s - measured_s > END_TOLERANCE_S
    clip.broken = clip.broken or cut_off(clip.path) or (late and len(clip.container.streams) == 2)
    if clip.broken and (declared_s is None or (not late and clip.container.format.name not in INDEXED)):
        raise MediaError("corrupt", f"the file breaks off at {measured_s:.2f} s and does not say how long it was")
    if clip.container.format.name == AVI:
        _check_chunks(clip)
    near = declared_s is not None and abs(declared_s - measured_s) <= END_TOLERANCE_S
    clip.duration_s = max(declared_s, measured_s) if clip.broken else declared_s if near else measured_s
    if clip.duration_s <= 0:
        raise MediaError("corrupt", "the file has no duration")


def _check_chunks(clip: Clip) -> None:
    """Check that an AVI has all its chunks: they have no times, so a lost one shifts everything after it."""
    declared_s = _declared_end_s(clip.container, clip.video, clip.start)
    measured_s = float(clip.picture.end - clip.start)
    half_tick_s = float(clip.video.time_base) / 2
    if declared_s is not None and declared_s - measured_s > half_tick_s:
        raise MediaError("corrupt", f"{measured_s:.2f} s of the {declared_s:.2f} s that the file declares are there")


def _declared_s(clip: Clip) -> float | None:
    """Return the declared duration in seconds, if any."""
    declared = clip.container.duration
    if not declared or declared <= 0:
        return None
    ends_s = [_declared_end_s(clip.container, stream, clip.start) for stream in (clip.video, clip.audio)]
    declared_s = declared / av.time_base
    if None not in ends_s and abs(max(ends_s) - declared_s) > END_TOLERANCE_S:
        return max(ends_s)
    if clip.container.format.name == MATROSKA:  # it counts from 0, not from the first stamp
        declared_s -= max(float(clip.start), 0.0)
    return declared_s


def _declared_end_s(container, stream, start: Fraction) -> float | None:
    if container.format.name not in STREAM_LENGTHS or not stream.duration:
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base - start)


def _demux(container: av.container.InputContainer, clip: Clip) -> Iterator[av.Packet]:
    """Yield non-empty packets with timestamps of one clock; an unreadable rest makes the clip `broken`."""
    streams = [container.streams[stream.index] for stream in (clip.video, clip.audio)]
    clock = Clock() if container.format.flags & FormatFlags.ts_discont.value else None
    try:
        for packet in _of_known_streams(container, streams, skip=clip.late_streams):
            if packet.size:
                if clock:
                    clock.correct(packet)
                yield packet
    except av.error.FFmpegError:
        clip.broken = True


def _of_known_streams(container, streams: list, skip: bool) -> Iterator[av.Packet]:
    """Yield packets of these streams; packets of streams that appear later are skipped or raise IndexError."""
    while True:
        try:
            yield from container.demux(streams)
            return
        except IndexError:
            if not skip:
                raise
