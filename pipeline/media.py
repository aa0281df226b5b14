"""PyAV only: the exact centre frame and the audio around it, out of one pass over a clip.

The frame wanted is the last one with time <= t. Packets carry presentation times, so it is known before anything is
decoded: packets before the last key frame that precedes it are dropped unread, and between that key frame and the
target the decoder skips frames that no other frame refers to. Pixels are those of decoding everything.

Times count from the container's start, as in every player: 0 is where the first picture or sound is shown, so what an
edit list hides (the lead of a clip cut with `ffmpeg -ss -c copy`) does not count, nor does a stream's first time stamp.
"""

import math
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

from pipeline.sound import END_TOLERANCE_S, NeedsWholeError, Sound

# Strangers' files: no format that names other files (playlists, concat scripts, image sequences), no network.
CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,flv,mpegts,mpeg,ogg,asf"}
MAX_STREAMS = 32
# 8192 x 8192; a decoder holds up to 17 frames of 1.5 to 6 bytes a pixel.
MAX_PIXELS = 2**26
# Long side over short side as shown: with 256 pixels on the short side, 4,096 on the long one.
MAX_ASPECT = 16
# Packets held since the last key frame; those of a 10 s clip are 4 MB at most, of ten minutes without one 500 MB.
HELD_BYTES = 2**25
# A frame is shown at most 16 frames after it is decoded; used where packets carry decoding times alone.
REORDER_S = 1


class MediaError(Exception):
    """A clip that cannot be used: `reason` is one of the ledger's, the text says what was found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # the default would call the constructor with the text alone
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipMedia:
    """What one pass over a clip gives. Times are seconds from the start of the container."""

    frame: av.VideoFrame
    """The centre frame as decoded: not yet turned upright, pixels not yet square."""
    pixel_aspect: Fraction
    """Width over height of its pixels."""
    frame_time_s: float
    """Presentation time of the frame."""
    duration_s: float
    """Seconds, as the container declares; measured where it declares nothing."""
    audio_i16: np.ndarray
    """(N,) mono samples, int16."""
    audio_left_out: int
    """Samples of the stream before these, at the same rate, that were not resampled."""
    audio_start_s: float
    """Time of the first of these samples."""


def read_clip(path: Path, clip_s: float, audio_s: float, sample_rate_hz: int) -> ClipMedia:
    """Decode the centre frame of a clip and its audio from before the window around the centre to past it.

    The centre is half of the file's duration or of `clip_s` (may be infinite), whichever is shorter. The audio reaches
    `audio_s` / 2 behind the centre and is `audio_s` long; where the clip ends before that it is all there is. Raises
    MediaError with the ledger's reason, and FileNotFoundError.
    """
    try:
        try:
            return _read(path, clip_s, audio_s, sample_rate_hz, whole=False)
        except NeedsWholeError:
            return _read(path, clip_s, audio_s, sample_rate_hz, whole=True)
    except FileNotFoundError:  # FFmpeg's is one too, and says nothing about the clip
        raise
    except av.error.FFmpegError as error:
        raise MediaError("corrupt", f"not decodable: {error.strerror}") from error


def open_media(path: Path) -> av.container.InputContainer:
    """Open a stranger's file: no format that names other files, no network, no boundless pictures."""
    options = {"max_pixels": str(MAX_PIXELS)}  # of the decoders that look into the streams while the file is opened
    return av.open(f"file:{path}", metadata_errors="replace", container_options=CONTAINER_OPTIONS, options=options)


def shown_streams(container: av.container.InputContainer) -> tuple[av.VideoStream, av.AudioStream]:
    """The streams that a player shows: the default ones, of these the largest picture and the most channels."""
    if len(container.streams) > MAX_STREAMS:
        raise MediaError("corrupt", f"{len(container.streams)} streams are no clip's")
    flags = av.stream.Disposition
    videos = [stream for stream in container.streams.video if not stream.disposition & flags.attached_pic]
    if not videos:
        raise MediaError("no_video", "the file has no video stream")
    if not container.streams.audio:
        raise MediaError("no_audio", "the file has no audio stream")
    for stream in (*videos, *container.streams.audio):
        if stream.codec_context is None:
            raise MediaError("corrupt", f"there is no decoder for the {stream.type} stream")
    video = max(videos, key=lambda s: (bool(s.disposition & flags.default), s.width * s.height))
    audio = max(container.streams.audio, key=lambda s: (bool(s.disposition & flags.default), s.channels))
    if video.width * video.height > MAX_PIXELS:
        raise MediaError("corrupt", f"frames of {video.width}x{video.height} pixels are no clip's")
    return video, audio


def _declared_s(container: av.container.InputContainer, video: av.VideoStream) -> float | None:
    if container.duration and container.duration > 0:
        return container.duration / av.time_base
    if video.duration and video.time_base:
        return float(video.duration * video.time_base)
    return None


def _measured_s(path: Path) -> float:
    """Seconds from the container's start to the end of its last packet: live recordings declare no duration."""
    with open_media(path) as container:
        video, audio = shown_streams(container)
        end = start_of(container)
        for packet in _packets(container, video, audio):
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if end == start_of(container):
            raise MediaError("corrupt", "the file has no duration")
        return float(end - start_of(container))


def start_of(container: av.container.InputContainer) -> Fraction:
    """Time stamp of the first picture or sound shown, seconds in the file's own time."""
    return Fraction(container.start_time or 0, av.time_base)


def _read(path: Path, clip_s: float, audio_s: float, rate: int, whole: bool) -> ClipMedia:
    with open_media(path) as container:
        video, audio = shown_streams(container)
        duration_s = _declared_s(container, video) or _measured_s(path)
        centre_s = min(duration_s, clip_s) / 2
        start = start_of(container)
        # The last tick that is not after the centre. Durations are whole microseconds; as a float 4.8 s is a little
        # less, and a start that was rounded to microseconds may be half of one too early.
        centre = start + Fraction(centre_s).limit_denominator(2_000_000) + Fraction(1, 2_000_000)
        picture = _Picture(video, math.floor(centre / video.time_base), stamped=container.format.name != "avi")
        sound = Sound(audio, rate, until_s=float(start) + centre_s + audio_s / 2, least_s=audio_s, whole=whole)
        for packet in _packets(container, video, audio):
            (sound if packet.stream is audio else picture).feed(packet)
            if picture.finished and sound.finished:
                break
        return _found(picture, sound, video, start, duration_s)


def _found(picture: "_Picture", sound: Sound, video: av.VideoStream, start: Fraction, duration_s: float) -> ClipMedia:
    samples, left_out, samples_start_s = sound.samples()
    missing = sound.missing() or picture.missing()
    if missing:
        raise MediaError("corrupt", missing)
    frame, frame_pts = picture.frame()
    pixel_aspect = video.sample_aspect_ratio or Fraction(1)
    width, height = displayed_size(frame, pixel_aspect)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError("corrupt", f"a picture of {width}x{height} pixels is no clip's")
    if len(samples) == 0:
        raise MediaError("no_audio", "the audio stream holds no samples")
    return ClipMedia(
        frame=frame,
        pixel_aspect=pixel_aspect,
        frame_time_s=float(frame_pts * video.time_base - start),
        duration_s=duration_s,
        audio_i16=samples,
        audio_left_out=left_out,
        audio_start_s=samples_start_s - float(start),
    )


def _packets(container, video, audio) -> Iterator[av.Packet]:
    """Demux both streams; a file that breaks off ends here, and the checks that follow say what is missing."""
    try:
        yield from container.demux(video, audio)
    except av.error.FFmpegError:
        return


class _Picture:
    """Finds the last frame shown at or before a time, from packets in the file's order, and decodes it.

    Decoding times never exceed presentation times and only grow: once one lies behind the centre, no later packet can
    hold a frame before it. Not `stamped` is AVI, which keeps no presentation times: its packets' are guesses, its
    frames come in the order of the decoder, each at the decoding time of the packet that brought it out.
    """

    def __init__(self, stream: av.VideoStream, centre_pts: int, stamped: bool):
        self.finished = False
        """Whether no later packet matters."""
        self._stream, self._context = stream, stream.codec_context
        self._context.thread_count = 1  # workers are processes; frame threads would also delay skip_frame
        self._context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size midway
        self._centre_pts, self._stamped = centre_pts, stamped
        self._end_pts: int | None = None
        self._held: deque[av.Packet] = deque()
        self._decoding = False
        self._forget()

    def feed(self, packet: av.Packet) -> None:
        """Keep one packet, or what follows from it: a key frame before the centre makes all before it needless."""
        if self.finished or not packet.size:
            return
        stamped = self._stamped and packet.pts is not None
        pts = packet.pts if stamped else packet.dts
        slack = 0 if stamped else math.ceil(REORDER_S / self._stream.time_base)
        if packet.is_keyframe and pts is not None and pts <= self._centre_pts - slack:
            self._forget()
        self._held.append(packet)
        self._held_bytes += packet.size
        self._exact = self._exact and stamped
        if pts is not None:
            self._end_pts = max(pts + (packet.duration or 0), pts if self._end_pts is None else self._end_pts)
            if pts <= self._centre_pts and not packet.is_discard and (self._target is None or pts > self._target):
                self._target = pts
        while self._held_bytes > HELD_BYTES:
            self._decode(self._held.popleft())
        self.finished = packet.dts is not None and packet.dts > self._centre_pts

    def frame(self) -> tuple[av.VideoFrame, int]:
        """The frame and its presentation time in the stream's time base. Raises MediaError where there is none."""
        if self._end_pts is None:
            raise MediaError("no_video", "the video stream holds no frames")
        while self._held and not (self._exact and self._sent_target):
            self._decode(self._held.popleft())
        self._take(self._context.decode(None))
        if self._best is None:
            raise MediaError("corrupt", "no frame before the centre could be decoded")
        if self._exact and self._best_pts != self._target:
            raise MediaError("corrupt", "the centre frame could not be decoded")
        if self._best.is_corrupt:
            raise MediaError("corrupt", "the centre frame is damaged")
        return self._best, self._best_pts

    def missing(self) -> str | None:
        """In words, if the stream ended well before the end it declares and before the centre; else None."""
        declared_pts = (self._stream.start_time or 0) + (self._stream.duration or 0)
        tolerance = END_TOLERANCE_S / self._stream.time_base
        if self.finished or self._end_pts is None or self._end_pts >= min(declared_pts, self._centre_pts) - tolerance:
            return None
        ends_s, of_s = (float(pts * self._stream.time_base) for pts in (self._end_pts, declared_pts))
        return f"video ends at {ends_s:.2f} s of {of_s:.2f} s"

    def _forget(self) -> None:
        self._held.clear()
        self._held_bytes = 0
        if self._decoding:
            self._context.flush_buffers()
        self._decoding = self._sent_target = False
        self._exact = True  # every packet held has its own presentation time
        self._target = self._best = self._best_pts = self._last_pts = None

    def _decode(self, packet: av.Packet) -> None:
        """Decode, skipping what is neither the target nor referred to; a later target makes this one a frame to skip.

        Only H.264 says of every frame whether any other needs it. HEVC says it for its temporal layer alone, VP9 keeps
        probabilities of frames that it does not keep, and libdav1d looks at the wish only when it is opened.
        """
        self._decoding = True
        self._held_bytes -= packet.size
        skippable = self._exact and self._context.name == "h264" and packet.pts != self._target
        self._context.skip_frame = "NONREF" if skippable else "DEFAULT"
        self._sent_target = self._sent_target or packet.pts == self._target
        self._take(self._context.decode(packet))

    def _take(self, frames: list[av.VideoFrame]) -> None:
        for frame in frames:
            pts = frame.pts if self._stamped else frame.dts
            if pts is None and self._last_pts is not None:
                pts = self._last_pts + round(1 / (self._stream.time_base * (self._stream.average_rate or 25)))
            self._last_pts = pts
            if pts is not None and pts <= self._centre_pts and (self._best is None or pts >= self._best_pts):
                self._best, self._best_pts = frame, pts


def displayed_size(frame: av.VideoFrame, pixel_aspect: Fraction) -> tuple[int, int]:
    """(width, height) in pixels of the frame as players show it: pixels square, upright. At least 1 x 1."""
    width, height = max(1, round(frame.width * pixel_aspect)), frame.height
    return (height, width) if _turn(frame)[0] else (width, height)


def scale_to_rgb(frame: av.VideoFrame, short_side: int, pixel_aspect: Fraction = Fraction(1)) -> np.ndarray:
    """The frame as players show it, uint8 (H, W, 3) RGB, the shorter side of `short_side` pixels (bicubic)."""
    shown = frame.width * pixel_aspect, frame.height
    scale = short_side / min(shown)
    width, height = (max(short_side, round(side * scale)) for side in shown)
    rgb = frame.reformat(width, height, format="rgb24", interpolation=Interpolation.BICUBIC).to_ndarray()
    transposed, mirrored, upside_down = _turn(frame)
    if transposed:
        rgb = rgb.swapaxes(0, 1)
    return np.ascontiguousarray(rgb[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then mirror left-right, then turn upside down) that the frame's display matrix asks for.

    The matrix maps (x, y) to (a x + c y, b x + d y), 16.16 fixed point, see libavutil/display.h. Angles between the
    quarter turns become the nearest of them: no camera writes others.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x, y = (c, b) if transposed else (a, d)
    return transposed, x < 0, y < 0
