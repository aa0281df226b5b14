"""Mono 16-bit samples of an audio stream at their times, exactly as decoding and resampling each unbroken stretch.

Missing packets become silence.
"""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import numpy as np

from avpipe.pipeline.media.container import COMPLAINT_CHARACTERS, END_TOLERANCE_S, complaints, prepare_decoder
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.survey import Clip

# Samples per block: blocks as short as decoder frames (1,024 samples, 371 at 16 kHz) take a third longer.
BLOCK_SAMPLES = 4096
# Seconds resampled before the first sample kept; the resampler's filter is shorter than 10 ms.
LEAD_S = 0.1
# A frame that starts nearly a full frame after the end of the previous one: one is missing. Rounded timestamps are off
# by a millisecond, those of some recorders by a few; PCM frames may be long.
GAP_FRAMES, LEAST_GAP_S, MOST_GAP_S = 0.9, 0.01, 0.05
# Channel layouts without positions; up to this many channels FFmpeg assumes the usual ones.
UNPLACED = re.compile(r"(\d+) channels")
MOST_DEFAULT_CHANNELS = 8
MOST_PLANES = 8
SLICEABLE = {"s16", "s16p", "s32", "s32p", "flt", "fltp", "u8", "u8p"}


@dataclass(kw_only=True, slots=True)
class Stretch:
    """A stretch of samples without a gap."""

    start_s: float
    """Time of the first sample, s on the file's own clock."""
    kind: tuple[int, str, str]
    """Sample rate, format and channel layout."""
    mixable: bool
    """Whether FFmpeg can mix its channels."""
    sliceable: bool
    """Whether frames can be sliced."""
    blocks: list[np.ndarray] = field(default_factory=list)
    skipped: int = 0
    """Samples skipped at the beginning without resampling, at the new rate."""
    source_count: int = 0
    """Number of samples at the stream's own rate."""

    @property
    def end_s(self) -> float:
        """Time of the end of the last sample."""
        return self.start_s + self.source_count / self.kind[0]

    def made_s(self, rate: int) -> float:
        """Time of the end of the last sample that the resampler has output."""
        return self.start_s + (self.skipped + sum(map(len, self.blocks))) / rate


class Sound:
    """Collects the samples around a time, decoding from the start of the stream.

    AAC's noise substitution draws from one generator for the entire stream.

    Samples before `from_s` are decoded but not resampled. The resampler then starts at a common multiple of both
    rates, where its phase, and so every sample, is that of resampling the entire stretch.
    """

    def __init__(self, stream: av.AudioStream, sample_rate_hz: int, from_s: float, until_s: float, heard: list):
        """`from_s` and `until_s` are seconds on the file's own clock; infinite for no limit.

        `heard` is the list of FFmpeg's errors that `complaints` collects while packets are fed.
        """
        self._heard = heard
        self._context, self._rate = stream.codec_context, sample_rate_hz
        prepare_decoder(self._context)
        self._from_s, self._until_s = from_s, until_s
        self._stretches: list[Stretch] = []
        self._resampler: av.AudioResampler | None = None
        self._to_skip = 0  # samples at the stream's own rate
        self.finished = False
        """Whether the sound has passed `until_s`."""

    def feed(self, packet: av.Packet | None) -> None:
        """Decode one packet, or, with None, flush the decoder.

        Raises MediaError for any damage: in AAC it changes the noise of everything after it.
        """
        if self.finished:
            return
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError as error:
            frames, words = [], error.strerror
        else:
            words = self._heard[0][2].strip() if self._heard else ""
        self._heard.clear()
        if words and self._stretches:  # a stream may start in the middle of a frame
            raise MediaError("corrupt", f"the sound is damaged: {words[:COMPLAINT_CHARACTERS]}")
        for frame in frames:
            self._add(frame)
        self.finished = bool(self._stretches) and self._stretches[-1].made_s(self._rate) >= self._until_s

    @property
    def begins_s(self) -> float:
        """Time of the first decoded sample, s on the file's own clock; infinite if there is none yet."""
        return self._stretches[0].start_s if self._stretches else math.inf

    def samples(self) -> tuple[np.ndarray, float]:
        """Return ((N,) int16, time of the first sample, s on the file's own clock) with silence in the gaps."""
        if not self.finished:
            self._close()
        stretches = [stretch for stretch in self._stretches if stretch.blocks]
        kept = [(self._starts(stretch), np.concatenate(stretch.blocks)) for stretch in stretches]
        if not kept:
            return np.empty(0, np.int16), 0.0
        first_s = kept[0][0]
        places = [round((start_s - first_s) * self._rate) for start_s, _ in kept]
        whole = np.zeros(max(place + len(part) for place, (_, part) in zip(places, kept, strict=True)), np.int16)
        for place, (_, part) in zip(places, kept, strict=True):
            whole[max(place, 0) : place + len(part)] = part[max(-place, 0) :]
        return whole, first_s

    def _starts(self, stretch: Stretch) -> float:
        """Time of the first sample kept, without what the resampler needs before the window."""
        lead = round(LEAD_S * self._rate) if stretch.skipped else 0
        if lead:
            stretch.blocks = [np.concatenate(stretch.blocks)[lead:]]
        return stretch.start_s + (stretch.skipped + lead) / self._rate

    def _add(self, frame: av.AudioFrame) -> None:
        stretch = self._stretches[-1] if self._stretches else None
        time_s = frame.time if frame.time is not None else (stretch.end_s if stretch else 0.0)
        kind = frame.sample_rate, frame.format.name, frame.layout.name
        joined = stretch is not None and abs(time_s - stretch.end_s) <= longest_step_s(frame)
        if not joined or kind != stretch.kind:
            self._close()
            start_s, mixable = stretch.end_s if joined else time_s, is_mixable(frame.layout.name)
            stretch = Stretch(start_s=start_s, kind=kind, mixable=mixable, sliceable=_is_sliceable(frame))
            self._stretches.append(stretch)
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=self._rate, frame_size=BLOCK_SAMPLES)
            self._skip_lead(stretch)
        stretch.source_count += frame.samples
        for rest in self._without_lead(frame):
            stretch.blocks += _blocks(self._resampler.resample(rest if stretch.mixable else mono(rest)))

    def _skip_lead(self, stretch: Stretch) -> None:
        """Decide how much to skip without resampling, in common multiples of the rates."""
        source_rate = stretch.kind[0]
        unneeded_s = self._from_s - LEAD_S - stretch.start_s
        self._to_skip = 0
        if 0 < unneeded_s < math.inf and stretch.sliceable:
            step = source_rate // math.gcd(source_rate, self._rate)
            self._to_skip = math.floor(unneeded_s * source_rate / step) * step
        stretch.skipped = self._to_skip * self._rate // source_rate

    def _without_lead(self, frame: av.AudioFrame) -> Iterator[av.AudioFrame]:
        """Return the part of a frame to resample: all of it, its end, or None."""
        if not self._to_skip:
            yield frame
            return
        skipped = min(self._to_skip, frame.samples)
        self._to_skip -= skipped
        if skipped < frame.samples:
            first = skipped if frame.format.is_planar else skipped * len(frame.layout.channels)
            part = np.ascontiguousarray(frame.to_ndarray()[:, first:])
            yield _frame(part, frame.format.name, frame.layout.name, frame.sample_rate)

    def _close(self) -> None:
        if self._resampler is not None and self._stretches[-1].source_count:
            self._stretches[-1].blocks += _blocks(self._resampler.resample(None))
        self._resampler = None


def longest_step_s(frame: av.AudioFrame) -> float:
    """Return the gap in seconds between a frame and the end of the previous one that still counts as none."""
    return min(max(GAP_FRAMES * frame.samples / frame.sample_rate, LEAST_GAP_S), MOST_GAP_S)


def sound_around(clip: Clip, centre_s: float, length_s: float, rate: int) -> tuple[np.ndarray, float]:
    """Return ((N,) int16 mono, time of the first sample in s on the clip's timeline) around `centre_s`.

    It contains the `length_s` seconds around the centre, shifted to lie within the clip; less if the clip is shorter.
    If only the sound starts late or ends early, the rest is silence, as when the clip is played. Raises MediaError.
    """
    start_s, until_s = float(clip.start), centre_s + length_s / 2
    end_s = float(clip.sound.end - clip.start)
    early = not clip.broken and clip.duration_s - end_s > END_TOLERANCE_S
    from_s = until_s - length_s
    if not early and until_s > end_s:
        from_s = end_s - length_s - END_TOLERANCE_S  # the window will be shifted
    with complaints() as heard:
        sound = Sound(clip.audio, rate, start_s + from_s, start_s + max(until_s, length_s), heard)
        for packet in itertools.chain(clip.sounds(), (None,)):
            sound.feed(packet)
            if sound.finished:
                break
    samples_i16, first_s = sound.samples()
    first_s = first_s - start_s if len(samples_i16) else clip.duration_s
    begins_s = sound.begins_s - start_s
    silent_from_s = max(from_s, 0.0 if begins_s > END_TOLERANCE_S else begins_s)
    silent_until_s = clip.duration_s if early and not sound.finished else 0.0
    return _with_silence(samples_i16, first_s, silent_from_s, silent_until_s, rate)


def _with_silence(
    samples_i16: np.ndarray, first_s: float, from_s: float, until_s: float, rate: int
) -> tuple[np.ndarray, float]:
    """Return (samples padded with silence on both sides, time of the first): all that is played in that time."""
    before = round((first_s - from_s) * rate) if first_s - from_s > MOST_GAP_S else 0
    behind = max(round((until_s - first_s) * rate) - len(samples_i16), 0)
    return np.pad(samples_i16, (before, behind)), first_s - before / rate


def is_mixable(layout: str) -> bool:
    """Whether FFmpeg knows the channel positions of a layout."""
    unplaced = UNPLACED.match(layout)
    return not layout.startswith("ambisonic") and (unplaced is None or int(unplaced[1]) <= MOST_DEFAULT_CHANNELS)


def mono(frame: av.AudioFrame) -> av.AudioFrame:
    """Return the frame itself if FFmpeg can mix its channels, else one channel.

    Of ambisonics it is the omnidirectional one (W, the first), of channels without positions their mean.
    """
    name = frame.layout.name
    if is_mixable(name):
        return frame
    channels = frame.layout.nb_channels
    if frame.format.is_planar:
        packer = av.AudioResampler(format=frame.format.packed.name, layout=frame.layout)
        frame = (packer.resample(frame) + packer.resample(None))[0]
    samples = frame.to_ndarray().reshape(-1, channels).T
    mixed = samples[:1] if name.startswith("ambisonic") else samples.mean(axis=0, keepdims=True)
    mixed = np.ascontiguousarray(mixed.astype(samples.dtype))
    return _frame(mixed, frame.format.packed.name, "mono", frame.sample_rate, frame.pts, frame.time_base)


def _is_sliceable(frame: av.AudioFrame) -> bool:
    """PyAV cannot convert some formats to arrays, and reads past the end with eight or more planes."""
    return frame.format.name in SLICEABLE and not (frame.format.is_planar and frame.layout.nb_channels >= MOST_PLANES)


def _frame(samples: np.ndarray, form: str, layout: str, rate: int, pts=None, time_base=None) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples, form, layout)
    frame.sample_rate = rate
    if time_base:
        frame.pts, frame.time_base = pts, time_base
    return frame


def _blocks(frames: list[av.AudioFrame]) -> list[np.ndarray]:
    return [frame.to_ndarray().reshape(-1) for frame in frames]
