"""Named feature specs: from a mono waveform to the array that a method reads."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

from avpipe.pipeline.features import mel


def digest(value: dict) -> str:
    """Eight hexadecimal digits that name a dictionary of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec(ABC):
    """A recipe for one audio representation; its name is its key in SPECS."""

    sample_rate_hz: int = 16_000
    """Hertz of the waveform."""
    audio_s: float = 3.0
    """Seconds of sound around the centre of the clip that the method wants."""

    @property
    def samples(self) -> int:
        """Length of the waveform of `audio_s` seconds."""
        return round(self.audio_s * self.sample_rate_hz)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name this recipe."""
        recipe = asdict(self)
        if self.audio_s == 3.0:  # the first recipe, of 3 s, was named when the length was no part of it
            del recipe["audio_s"]
        return digest(recipe)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that `audio_s` seconds give."""

    @abstractmethod
    def compute(self, wave: np.ndarray) -> np.ndarray:
        """Float32 array of a waveform (N,), float in [-1, 1]; of the shape `shape` where N is `samples`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSpectrogram(Spec):
    """log(density + epsilon) / divisor of a short-time spectrum, as LVS, EZ-VSL and MarginNCE read it.

    The density is `scipy.signal.spectrogram`'s: Tukey(.25) window, mean removed in each window, one-sided, no padding.
    Values are natural logarithms of 1/Hz, divided by 12.
    """

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
    def shape(self) -> tuple[int, int]:
        """(frequencies from 0 Hz to Nyquist, windows)."""
        return self.window // 2 + 1, self.columns(self.samples)

    def columns(self, samples: int) -> int:
        """Number of windows that fit into `samples`: 200 for 3 s, 671 for 10 s."""
        return (samples - self.window) // self.hop + 1

    def compute(self, wave: np.ndarray) -> np.ndarray:
        """Spectrogram of a waveform.

        wave: (N,) float in [-1, 1] at `sample_rate_hz`, N >= 512. Returns float32 (257, columns(N)).
        Source: EZ-VSL datasets.py, LVS dataloader.py.
        """
        frames = mel.frames(wave.astype(np.float64), self.window, self.hop)
        frames = frames - frames.mean(axis=1, keepdims=True)
        taper = tukey(self.window, self.tukey_alpha)
        power = np.abs(np.fft.rfft(frames * taper, axis=1)) ** 2 / (self.sample_rate_hz * np.sum(taper**2))
        power[:, 1:-1] *= 2  # one-sided: all but the mean and the Nyquist band stand for two
        return (np.log(power.T + self.epsilon) / self.divisor).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class TieMel(Spec):
    """Mel spectrum in decibels, as SSL-TIE reads it.

    It is torchaudio's `MelSpectrogram(n_fft=512, hop_length=239, n_mels=257, normalized=True)` and `AmplitudeToDB()`:
    Hann windows around every multiple of the hop, the sound mirrored at its ends, power divided by the sum of the
    squared window, HTK triangles, decibels above a floor and without a limit to the range (top_db is None).
    Values are dB, 0 dB at power 1.
    """

    audio_s: float = 10.0
    """Seconds; shorter sound is repeated and cut to them."""
    window: int = 512
    """Samples a window."""
    hop: int = 239
    """Samples from window to window."""
    bands: int = 257
    """More than the transform can tell apart: 28 of them hold no line of it and stay at the floor."""
    floor: float = 1e-10
    """Smallest power, -100 dB."""

    @property
    def shape(self) -> tuple[int, int]:
        """(bands from low to high, windows)."""
        return self.bands, self.samples // self.hop + 1

    def compute(self, wave: np.ndarray) -> np.ndarray:
        """Mel spectrum of a waveform.

        wave: (N,) float in [-1, 1] at `sample_rate_hz`, N > 256. Returns float32 (257, N // 239 + 1), dB, in
        [-100, 25]. Source: SSL-TIE datasets/dataloader.py.
        """
        padded = np.pad(wave, self.window // 2, mode="reflect")
        power = mel.power_spectrum(padded, self.window, self.hop, self.window) / np.sum(mel.hann(self.window) ** 2)
        bank = mel.htk_bank(self.sample_rate_hz, self.window, self.bands)
        return mel.decibels((power @ bank).T, self.floor).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogMel(Spec):
    """Mel spectrum in decibels for comparisons with other audio work; none of the methods was published with it.

    It is librosa's `power_to_db(melspectrogram(y=wave, sr=16000, n_fft=512, hop_length=160, n_mels=64))`, everything
    else at librosa's defaults: Hann windows around every multiple of the hop, zeros beyond the ends, Slaney's scale
    and area, power, reference 1, top_db 80. Values are dB, 0 dB at power 1.
    """

    window: int = 512
    """Samples a window, 32 ms: the same resolution as the other specs."""
    hop: int = 160
    """Samples from window to window: 10 ms, the usual step."""
    bands: int = 64
    """VGGish's number; with 128 the lowest bands would rest on one or two lines of the transform."""
    floor: float = 1e-10
    """Smallest power, -100 dB."""
    range_db: float = 80.0
    """Decibels below the loudest point of the clip at which values are cut (librosa's top_db)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(bands from low to high, windows)."""
        return self.bands, self.samples // self.hop + 1

    def compute(self, wave: np.ndarray) -> np.ndarray:
        """Mel spectrum of a waveform.

        wave: (N,) float in [-1, 1] at `sample_rate_hz`. Returns float32 (64, N // 160 + 1), dB, in [-100, 40], none
        more than 80 dB below the largest.
        """
        padded = np.pad(wave, self.window // 2)
        power = mel.power_spectrum(padded, self.window, self.hop, self.window)
        level = mel.decibels((power @ mel.slaney_bank(self.sample_rate_hz, self.window, self.bands)).T, self.floor)
        return np.maximum(level, level.max() - self.range_db).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class VggishPatches(Spec):
    """Log-mel patches of 0.96 s that VGGish reads, of a waveform scaled as SSPL scales it.

    Values are natural logarithms of mel magnitude + 0.01.
    """

    window: int = 400
    """Samples a window, 25 ms."""
    hop: int = 160
    """Samples from window to window, 10 ms."""
    points: int = 512
    """Length of the transform; a window is filled up with zeros."""
    bands: int = 64
    """Mel bands."""
    lowest_hz: float = 125.0
    """Lower edge of the first band."""
    highest_hz: float = 7500.0
    """Upper edge of the last band."""
    offset: float = 0.01
    """Added before the logarithm."""
    patch: int = 96
    """Windows a patch; patches do not overlap, and what is left over at the end is dropped."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(patches, windows in time, bands from low to high)."""
        windows = (self.samples - self.window) // self.hop + 1
        return windows // self.patch, self.patch, self.bands

    def compute(self, wave: np.ndarray) -> np.ndarray:
        """Patches of the scaled waveform: (N,) float in [-1, 1] gives float32 (3, 96, 64) for 3 s, in [-4.6, 6].

        Source: SSPL dataset/base.py and metadata/read_frame_audio_then_save_hdf5.py.
        """
        return self.patches(sspl_normalise(wave))

    def patches(self, wave: np.ndarray) -> np.ndarray:
        """Patches of a waveform as it is, (N,) float, N >= 400. Source: torchvggish vggish_input.py."""
        magnitude = np.sqrt(mel.power_spectrum(wave, self.window, self.hop, self.points))
        bank = mel.vggish_bank(self.sample_rate_hz, self.points, self.bands, self.lowest_hz, self.highest_hz)
        whole = len(magnitude) // self.patch
        level = np.log(magnitude[: whole * self.patch] @ bank + self.offset)
        return level.reshape(whole, self.patch, self.bands).astype(np.float32)


SPECS: dict[str, Spec] = {
    "logspec": LogSpectrogram(),
    "logspec-10s": LogSpectrogram(audio_s=10.0),
    "tie-mel": TieMel(),
    "vggish": VggishPatches(),
    "logmel": LogMel(),
}


def pcm_to_float(pcm_i16: np.ndarray) -> np.ndarray:
    """Waveform in [-1, 1) of 16-bit samples, divided by 32768 as LVS and SSPL do.

    EZ-VSL divides by 32767, which moves its spectrogram by 7e-6.
    """
    return pcm_i16.astype(np.float32) / 32768.0


def sspl_normalise(wave: np.ndarray) -> np.ndarray:
    """Waveform as SSPL scales it before VGGish: from its own smallest to its own largest sample, onto [-1, 1).

    wave: (N,) float in [-1, 1]. Returns (N,) float32. Silence becomes -1, not 0, and one loud sample moves all others.
    Source: SSPL utils.py; in single precision like there, so that the results are the same to the bit.
    """
    lifted = (wave - wave.min()).astype(np.float32)
    return (lifted / (lifted.max() + np.float32(1e-3)) - np.float32(0.5)) * np.float32(2)


@cache
def tukey(window: int, alpha: float) -> np.ndarray:
    """Periodic tapered-cosine window, as `scipy.signal.get_window(("tukey", alpha), window)`."""
    position = np.arange(window)
    edge = alpha * window / 2
    distance = np.minimum(position, window - position)  # to the nearer end; periodic, so sample 0 is an end
    return np.where(distance < edge, 0.5 * (1 - np.cos(np.pi * distance / edge)), 1.0)
