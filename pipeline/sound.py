"""Mono 16-bit samples of a sound stream, sample-exact: those of decoding and resampling the whole of it."""

import math
from collections.abc import Iterator

import av
import numpy as np

# Samples a block: blocks as short as the decoder's frames (1,024 samples, 371 at 16 kHz) cost a third more time.
BLOCK_SAMPLES = 4096
# Seconds resampled before the first sample that is kept: the resampler's filter reaches over less than 10 ms.
LEAD_S = 0.1
# Seconds by which a stream may end before its declared end: the last packet's duration is often missing or wrong.
END_TOLERANCE_S = 0.5


class NeedsWholeError(Exception):
    """The sound ends before the time wanted, or changes in its course: no part of it may be left out."""


class Sound:
    """Collects samples until a given time, and until there are as many as the windows need.

    It decodes from the start of the stream: noise substitution in AAC draws from one generator for the whole of it.
    What comes before the window is not resampled, unless `whole`. The resampler then starts at a common multiple of
    both rates, where its phase is that of resampling the whole stream, and with it every sample.
    """

    def __init__(self, stream: av.AudioStream, sample_rate_hz: int, until_s: float, least_s: float, whole: bool):
        self.finished = False
        """Whether the sound reaches past `until_s` (the file's own time) and is `least_s` seconds long."""
        self.start_s: float | None = None
        """Time of the first sample in the file's own time; None before there is one."""
        self._stream, self._rate = stream, sample_rate_hz
        self._until_s, self._least_s, self._whole = until_s, least_s, whole
        self._resampler = self._new_resampler()
        self._blocks: list[np.ndarray] = []
        self._left_out = self._count = 0  # samples of the stream, at the new rate
        self._to_leave_out = 0  # samples of the stream, at its own rate

    def feed(self, packet: av.Packet) -> None:
        """Decode one packet (the empty one at the end too) unless there is enough already."""
        if self.finished:
            return
        for frame in packet.decode():
            if self.start_s is None:
                self.start_s = frame.time or 0.0
                self._kind = _kind(frame)
                self._leave_out(frame.sample_rate)
            for rest in self._without_lead(frame):
                self._append(self._resample(rest))
        self.finished = self._count >= self._least_s * self._rate and self._end_s() >= self._until_s

    def samples(self) -> tuple[np.ndarray, int, float]:
        """((N,) int16, samples left out before them, time of the first in the file's own time); ends the resampling.

        Raises NeedsWholeError where the sound ends early and not all of it was kept.
        """
        if not self.finished and self.start_s is not None:
            if self._left_out:
                raise NeedsWholeError
            self._append(self._resampler.resample(None))
        lead = round(LEAD_S * self._rate) if self._left_out else 0
        kept = np.concatenate(self._blocks)[lead:] if self._blocks else np.empty(0, np.int16)
        left_out = self._left_out + lead
        return kept, left_out, (self.start_s or 0.0) + left_out / self._rate

    def missing(self) -> str | None:
        """In words, if the stream ended well before the end it declares and before the time wanted; else None."""
        declared_s = float(((self._stream.start_time or 0) + (self._stream.duration or 0)) * self._stream.time_base)
        if self.finished or self._end_s() >= min(declared_s, self._until_s) - END_TOLERANCE_S:
            return None
        return f"audio ends at {self._end_s():.2f} s of {declared_s:.2f} s"

    def _end_s(self) -> float:
        return (self.start_s or 0.0) + self._count / self._rate

    def _leave_out(self, source_rate: int) -> None:
        """Decide how much to leave out, in common multiples of the rates."""
        unneeded_s = self._until_s - self._least_s - LEAD_S - self.start_s
        if self._whole or unneeded_s <= 0:
            return
        step = source_rate // math.gcd(source_rate, self._rate)
        steps = math.floor(unneeded_s * source_rate / step)
        self._to_leave_out = steps * step
        self._left_out = self._count = steps * step * self._rate // source_rate

    def _without_lead(self, frame: av.AudioFrame) -> Iterator[av.AudioFrame]:
        """What is to be resampled of a frame: all of it, its end, or nothing."""
        if not self._to_leave_out:
            yield frame
            return
        if _kind(frame) != self._kind:
            raise NeedsWholeError
        skipped = min(self._to_leave_out, frame.samples)
        self._to_leave_out -= skipped
        if skipped < frame.samples:
            first = skipped if frame.format.is_planar else skipped * len(frame.layout.channels)
            part = np.ascontiguousarray(frame.to_ndarray()[:, first:])
            rest = av.AudioFrame.from_ndarray(part, frame.format.name, frame.layout.name)
            rest.sample_rate = frame.sample_rate
            yield rest

    def _new_resampler(self) -> av.AudioResampler:
        return av.AudioResampler(format="s16", layout="mono", rate=self._rate, frame_size=BLOCK_SAMPLES)

    def _resample(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        try:
            return self._resampler.resample(frame)
        except ValueError:  # from here on the stream has another rate or other channels
            if self._left_out:
                raise NeedsWholeError from None
            rest = self._resampler.resample(None)
            self._resampler = self._new_resampler()
            return rest + self._resampler.resample(frame)

    def _append(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            block = frame.to_ndarray().reshape(-1)
            self._blocks.append(block)
            self._count += len(block)


def _kind(frame: av.AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name
