"""Short-time power spectra and mel filter banks in NumPy, as torchaudio, librosa and VGGish define them.

All in double precision, so that the last bit of a stored float16 does not hang on the machine's matrix product. The
tables are built once a process and read-only, because all clips share them.
"""

from functools import cache

import numpy as np

# Slaney's scale: linear up to 1 kHz, 15 mel, and from there 27 steps to each factor of 6.4.
LINEAR_HZ_A_MEL = 200 / 3
BREAK_HZ, BREAK_MEL = 1000.0, 15.0
LOG_HZ_A_MEL = np.log(6.4) / 27


def frames(wave: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Windows of a waveform (N,) as a view: (1 + (N - window) // hop, window)."""
    return np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]


def power_spectrum(wave: np.ndarray, window: int, hop: int, points: int) -> np.ndarray:
    """|transform|² of Hann windows, each filled up with zeros to `points` samples.

    wave: (N,) float, N >= window. Returns float64 (1 + (N - window) // hop, points // 2 + 1), squared sample units.
    """
    spectrum = np.fft.rfft(frames(wave.astype(np.float64), window, hop) * hann(window), points, axis=1)
    return spectrum.real**2 + spectrum.imag**2


def decibels(power: np.ndarray, floor: float) -> np.ndarray:
    """10 log10 of a power, which is raised to `floor` where it is smaller."""
    return 10 * np.log10(np.maximum(power, floor))


@cache
def hann(window: int) -> np.ndarray:
    """Periodic Hann window, (window,) in [0, 1]."""
    return _shared(0.5 * (1 - np.cos(2 * np.pi * np.arange(window) / window)))


@cache
def htk_bank(sample_rate_hz: int, points: int, bands: int) -> np.ndarray:
    """(points // 2 + 1, bands) in [0, 1]: triangles in hertz between equal steps of HTK's scale, from 0 to Nyquist.

    Source: torchaudio's `melscale_fbanks` with its defaults.
    """
    edges_mel = np.linspace(0, _htk_mel(sample_rate_hz / 2), bands + 2)
    return _shared(_triangles(_lines_hz(sample_rate_hz, points), 700 * np.expm1(edges_mel)))


@cache
def slaney_bank(sample_rate_hz: int, points: int, bands: int) -> np.ndarray:
    """(points // 2 + 1, bands), 1/Hz: triangles of area one between equal steps of Slaney's scale, from 0 to Nyquist.

    Source: `librosa.filters.mel` with its defaults.
    """
    top_mel = BREAK_MEL + np.log(sample_rate_hz / 2 / BREAK_HZ) / LOG_HZ_A_MEL
    edges_mel = np.linspace(0, top_mel, bands + 2)
    above_hz = BREAK_HZ * np.exp((edges_mel - BREAK_MEL) * LOG_HZ_A_MEL)
    edges_hz = np.where(edges_mel < BREAK_MEL, edges_mel * LINEAR_HZ_A_MEL, above_hz)
    return _shared(_triangles(_lines_hz(sample_rate_hz, points), edges_hz) * 2 / (edges_hz[2:] - edges_hz[:-2]))


@cache
def vggish_bank(sample_rate_hz: int, points: int, bands: int, lowest_hz: float, highest_hz: float) -> np.ndarray:
    """(points // 2 + 1, bands) in [0, 1]: triangles that are straight in mel, on HTK's scale; 0 Hz counts nowhere.

    Source: VGGish mel_features.py.
    """
    edges_mel = np.linspace(_htk_mel(lowest_hz), _htk_mel(highest_hz), bands + 2)
    bank = _triangles(_htk_mel(_lines_hz(sample_rate_hz, points)), edges_mel)
    bank[0] = 0
    return _shared(bank)


def _htk_mel(hz: float | np.ndarray) -> float | np.ndarray:
    """HTK's scale without its factor of 1127, which no triangle depends on."""
    return np.log1p(hz / 700)


def _lines_hz(sample_rate_hz: int, points: int) -> np.ndarray:
    return np.linspace(0, sample_rate_hz / 2, points // 2 + 1)


def _triangles(lines: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(lines, len(edges) - 2): band k rises from edge k to 1 at edge k + 1 and falls to 0 at edge k + 2."""
    steps = np.diff(edges)
    rise = (lines[:, None] - edges[:-2]) / steps[:-1]
    fall = (edges[2:] - lines[:, None]) / steps[1:]
    return np.maximum(0, np.minimum(rise, fall))


def _shared(table: np.ndarray) -> np.ndarray:
    table.flags.writeable = False
    return table
