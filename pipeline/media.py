"""PyAV only: the exact centre frame and the audio around it, out of one pass over a clip.

The frame wanted is the last one with time <= t. Packets carry presentation times, so it is known before anything is
decoded: packets before the last key frame that precedes it are dropped unread, and between that key frame and the
target the decoder skips frames that no other frame refers to. Pixels are those of decoding everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

# Seconds by which a stream may end before its declared end: the last packet's duration is often missing or wrong.
END_TOLERANCE_S = 0.5


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
    """What one pass over a clip gives."""

    frame: av.VideoFrame
    """The centre frame as decoded."""
    frame_time_s: float
    """Presentation time of the frame, seconds in the file's own time."""
    duration_s: float
    """Seconds, as the container declares."""
    audio_i16: np.ndarray
    """(N,) mono samples of the whole decoded part, int16."""
    audio_start_s: float
    """Time of the first of these samples, seconds in the file's own time."""


def read_clip(path: Path, clip_s: float, audio_s: float, sample_rate_hz: int) -> ClipMedia:
    """Decode the centre frame of a clip and its audio from the beginning to past the window around the centre.

    The centre is half of the file's duration or of `clip_s`, whichever is shorter. The audio reaches at least
    `audio_s` / 2 behind the centre, or to its end. Raises MediaError with the ledger's reason, and FileNotFoundError.
    """
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return _read(container, clip_s, audio_s, sample_rate_hz)
    except FileNotFoundError:  # FFmpeg's is one too, and says nothing about the clip
        raise
    except av.error.FFmpegError as error:
        raise MediaError("corrupt", f"not decodable: {error.strerror}") from error


def _read(container: av.container.InputContainer, clip_s: float, audio_s: float, sample_rate_hz: int) -> ClipMedia:
    if not container.streams.video:
        raise MediaError("no_video", "the file has no video stream")
    if not container.streams.audio:
        raise MediaError("no_audio", "the file has no audio stream")
    video, audio = container.streams.video[0], container.streams.audio[0]
    for stream in (video, audio):
        if stream.codec_context is None:
            raise MediaError("corrupt", f"there is no decoder for the {stream.type} stream")
    duration_s = _duration_s(container, video)
    centre_s = min(duration_s, clip_s) / 2
    # The last tick that is not after the centre. Durations are whole microseconds; as a float 4.8 s is a little less.
    centre_pts = int(Fraction(centre_s).limit_denominator(2_000_000) / video.time_base)
    sound = _Sound(audio, sample_rate_hz, until_s=centre_s + audio_s / 2)
    packets = _demux(container, video, audio, centre_pts, sound)
    frame = _decode_target(video, packets, centre_pts)
    samples = sound.samples()
    if len(samples) == 0:
        raise MediaError("no_audio", "the audio stream holds no samples")
    return ClipMedia(
        frame=frame,
        frame_time_s=float(frame.pts * video.time_base),
        duration_s=duration_s,
        audio_i16=samples,
        audio_start_s=sound.start_s,
    )


def _duration_s(container: av.container.InputContainer, video: av.VideoStream) -> float:
    if container.duration:
        return container.duration / av.time_base
    if video.duration and video.time_base:
        return float(video.duration * video.time_base)
    raise MediaError("corrupt", "the file declares no duration")


class _Sound:
    """Collects mono 16-bit samples until a given time; resampled from the start of the stream, so that the phase of the
    resampler, and with it every sample, is that of resampling the whole stream."""

    def __init__(self, stream: av.AudioStream, sample_rate_hz: int, until_s: float):
        self.stream = stream
        self.until_s = until_s
        self.start_s = 0.0
        self.finished = False
        self._rate = sample_rate_hz
        self._resampler = self._new_resampler()
        self._blocks: list[np.ndarray] = []
        self._count = 0

    def feed(self, packet: av.Packet) -> None:
        """Decode one packet (the empty one at the end too) unless there is enough already."""
        if self.finished:
            return
        for frame in packet.decode():
            if not self._blocks and frame.time is not None:
                self.start_s = frame.time
            self._append(self._resample(frame))
        if self._count and self.start_s + self._count / self._rate >= self.until_s:
            self.finished = True

    def samples(self) -> np.ndarray:
        """All samples so far, (N,) int16; closes the resampler."""
        if not self.finished and self._blocks:
            self._append(self._resampler.resample(None))
        return np.concatenate(self._blocks) if self._blocks else np.empty(0, np.int16)

    def check_complete(self) -> None:
        """Raise MediaError if the stream ended well before the end it declares and before the time wanted."""
        declared_s = self.stream.duration * self.stream.time_base if self.stream.duration else 0
        end_s = self.start_s + self._count / self._rate
        if not self.finished and end_s < float(min(declared_s, self.until_s)) - END_TOLERANCE_S:
            raise MediaError("corrupt", f"audio ends at {end_s:.2f} s of {float(declared_s):.2f} s")

    def _new_resampler(self) -> av.AudioResampler:
        return av.AudioResampler(format="s16", layout="mono", rate=self._rate)

    def _resample(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        try:
            return self._resampler.resample(frame)
        except ValueError:  # from here on the stream has another rate or other channels
            rest = self._resampler.resample(None)
            self._resampler = self._new_resampler()
            return rest + self._resampler.resample(frame)

    def _append(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            block = frame.to_ndarray().reshape(-1)
            self._blocks.append(block)
            self._count += len(block)


def _demux(container, video, audio, centre_pts: int, sound: _Sound) -> list[av.Packet]:
    """Read until picture and sound reach past the centre; returns the video packets from the last key frame on.

    Decoding times never exceed presentation times and only grow: once one lies behind the centre, no later packet can
    hold a frame before it.
    """
    packets: list[av.Packet] = []
    end_pts, video_finished = 0, False
    for packet in _packets(container, video, audio):
        if packet.stream is audio:
            sound.feed(packet)
        elif packet.size and not video_finished:
            if packet.is_keyframe and packet.pts is not None and packet.pts <= centre_pts:
                packets.clear()
            packets.append(packet)
            if packet.pts is not None:
                end_pts = max(end_pts, packet.pts + (packet.duration or 0))
            video_finished = packet.dts is not None and packet.dts > centre_pts
        if video_finished and sound.finished:
            break
    sound.check_complete()
    if not packets:
        raise MediaError("no_video", "the video stream holds no frames")
    declared_pts = video.duration or 0
    if not video_finished and end_pts < min(declared_pts, centre_pts) - END_TOLERANCE_S / video.time_base:
        ends_s, of_s = float(end_pts * video.time_base), float(declared_pts * video.time_base)
        raise MediaError("corrupt", f"video ends at {ends_s:.2f} s of {of_s:.2f} s")
    return packets


def _packets(container, video, audio) -> Iterator[av.Packet]:
    """Demux both streams; a file that breaks off ends here, and the checks that follow say what is missing."""
    try:
        yield from container.demux(video, audio)
    except av.error.FFmpegError:
        return


def _decode_target(video: av.VideoStream, packets: list[av.Packet], centre_pts: int) -> av.VideoFrame:
    """Decode the frame whose packet has the last presentation time <= centre_pts."""
    context = video.codec_context
    context.thread_count = 1  # workers are processes; frame threads would also delay the switch of skip_frame
    shown = [p.pts for p in packets if p.pts is not None and p.pts <= centre_pts and not p.is_discard]
    target_pts = max(shown, default=None)
    untimed = any(p.pts is None for p in packets)
    best = None
    for frame in _frames(context, packets, None if untimed else target_pts):
        if frame.pts is not None and frame.pts <= centre_pts and (best is None or frame.pts > best.pts):
            best = frame
    if best is None:
        raise MediaError("corrupt", "no frame before the centre could be decoded")
    if not untimed and best.pts != target_pts:
        raise MediaError("corrupt", "the centre frame could not be decoded")
    if best.is_corrupt:
        raise MediaError("corrupt", "the centre frame is damaged")
    return best


def _frames(context: av.VideoCodecContext, packets: list[av.Packet], target_pts: int | None) -> Iterator[av.VideoFrame]:
    """Frames of `packets` in decoding order up to the target's; all of them when there is no known target."""
    for packet in packets:
        is_target = target_pts is None or packet.pts == target_pts
        context.skip_frame = "DEFAULT" if is_target else "NONREF"
        yield from context.decode(packet)
        if target_pts is not None and is_target:
            break
    yield from context.decode(None)


def scale_to_rgb(frame: av.VideoFrame, short_side: int) -> np.ndarray:
    """The frame as uint8 (H, W, 3) RGB with the shorter side of `short_side` pixels, aspect kept (bicubic)."""
    scale = short_side / min(frame.width, frame.height)
    width, height = (max(short_side, round(side * scale)) for side in (frame.width, frame.height))
    return frame.reformat(width, height, format="rgb24", interpolation=Interpolation.BICUBIC).to_ndarray()
