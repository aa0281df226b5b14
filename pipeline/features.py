"""Named feature specs: from a mono waveform to the array that a method reads."""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSpectrogram:
    """log(density + epsilon) / divisor of a short-time spectrum, as LVS, EZ-VSL and MarginNCE read it.

    The density is `scipy.signal.spectrogram`'s: Tukey(.25) window, mean removed in each window, one-sided, no padding.
    """

    sample_rate_hz: int = 16_000
    """Hertz of the waveform; the density depends on it."""
    window: int = 512
    """Samples a window."""
    hop: int = 238
    """Samples from window to window (SciPy's overlap of 274)."""
    tukey_alpha: float = 0.25
    """Share of the window that is tapered."""
    epsilon: float = 1e-7
    """Added before the logarithm."""
    divisor: float = 12.0
    """Brings the logarithm to about [-1.4, 0]; the published code calls it normalisation."""

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name this recipe."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def columns(self, samples: int) -> int:
        """Number of windows that fit into `samples`: 200 for 3 s, 671 for 10 s."""
        return (samples - self.window) // self.hop + 1

    def compute(self, wave: np.ndarray) -> np.ndarray:
        """Spectrogram of a waveform.

        wave: (N,) float in [-1, 1] at `sample_rate_hz`, N >= 512. Returns float32 (257, columns(N)).
        Source: EZ-VSL datasets.py, LVS dataloader.py.
        """
        frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), self.window)[:: self.hop]
        frames = frames - frames.mean(axis=1, keepdims=True)
        taper = _tukey(self.window, self.tukey_alpha)
        power = np.abs(np.fft.rfft(frames * taper, axis=1)) ** 2 / (self.sample_rate_hz * np.sum(taper**2))
        power[:, 1:-1] *= 2  # one-sided: all but the mean and the Nyquist band stand for two
        return (np.log(power.T + self.epsilon) / self.divisor).astype(np.float32)


SPECS = {"logspec": LogSpectrogram()}


def pcm_to_float(pcm_i16: np.ndarray) -> np.ndarray:
    """Waveform in [-1, 1) of 16-bit samples, divided by 32768 as LVS and SSPL do.

    EZ-VSL divides by 32767, which moves its spectrogram by 7e-6.
    """
    return pcm_i16.astype(np.float32) / 32768.0


def _tukey(window: int, alpha: float) -> np.ndarray:
    """Periodic tapered-cosine window, as `scipy.signal.get_window(("tukey", alpha), window)`."""
    position = np.arange(window)
    edge = alpha * window / 2
    distance = np.minimum(position, window - position)  # to the nearer end; periodic, so sample 0 is an end
    return np.where(distance < edge, 0.5 * (1 - np.cos(np.pi * distance / edge)), 1.0)
