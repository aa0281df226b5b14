"""Mono 16-bit samples of a sound stream, sample-exact: those of decoding and resampling the whole of it."""

import av
import numpy as np

# Samples a block: blocks as short as the decoder's frames (1,024 samples, 371 at 16 kHz) cost a third more time.
BLOCK_SAMPLES = 4096
# Seconds by which a stream may end before its declared end: the last packet's duration is often missing or wrong.
END_TOLERANCE_S = 0.5


class Sound:
    """Collects samples until a given time, and until there are as many as the windows need.

    It resamples from the start of the stream, so that the phase of the resampler, and with it every sample, is that of
    resampling the whole. Decoding from the start is the price of exactness, too: noise substitution in AAC draws from
    one generator for the whole stream.
    """

    def __init__(self, stream: av.AudioStream, sample_rate_hz: int, until_s: float, least_s: float):
        self.finished = False
        """Whether the sound reaches past `until_s` (the file's own time) and is `least_s` seconds long."""
        self.start_s: float | None = None
        """Time of the first sample in the file's own time; None before there is one."""
        self._stream, self._rate = stream, sample_rate_hz
        self._until_s, self._least_s = until_s, least_s
        self._resampler = self._new_resampler()
        self._blocks: list[np.ndarray] = []
        self._count = 0

    def feed(self, packet: av.Packet) -> None:
        """Decode one packet (the empty one at the end too) unless there is enough already."""
        if self.finished:
            return
        for frame in packet.decode():
            if self.start_s is None:
                self.start_s = frame.time or 0.0
            self._append(self._resample(frame))
        self.finished = self._count >= self._least_s * self._rate and self._end_s() >= self._until_s

    def samples(self) -> np.ndarray:
        """All samples so far, (N,) int16; closes the resampler."""
        if not self.finished and self.start_s is not None:
            self._append(self._resampler.resample(None))
        return np.concatenate(self._blocks) if self._blocks else np.empty(0, np.int16)

    def missing(self) -> str | None:
        """In words, if the stream ended well before the end it declares and before the time wanted; else None."""
        declared_s = float(((self._stream.start_time or 0) + (self._stream.duration or 0)) * self._stream.time_base)
        if self.finished or self._end_s() >= min(declared_s, self._until_s) - END_TOLERANCE_S:
            return None
        return f"audio ends at {self._end_s():.2f} s of {declared_s:.2f} s"

    def _end_s(self) -> float:
        return (self.start_s or 0.0) + self._count / self._rate

    def _new_resampler(self) -> av.AudioResampler:
        return av.AudioResampler(format="s16", layout="mono", rate=self._rate, frame_size=BLOCK_SAMPLES)

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
