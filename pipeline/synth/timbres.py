"""The timbres of the synthetic objects, each told from the others by ear and by spectrogram."""

from collections.abc import Callable

import numpy as np

SAMPLE_RATE = 44_100

TABLE = 8192  # entries of a one-period wave table: nearest-entry reading errs by less than -60 dB


# rng, samples → float32 (samples,), any level. All repeat each second, so any three seconds hold the whole character.
Timbre = Callable[[np.random.Generator, int], np.ndarray]


def _time(samples: int) -> np.ndarray:
    return np.arange(samples, dtype=np.float32) / np.float32(SAMPLE_RATE)


def _stack(frequency_hz: np.ndarray | float, samples: int, levels: list[float]) -> np.ndarray:
    """Sum harmonics 1, 2, … with `levels` over a fundamental that may change from sample to sample."""
    cycle = np.arange(TABLE) / TABLE * 2 * np.pi
    table = sum(level * np.sin(k * cycle) for k, level in enumerate(levels, 1)).astype(np.float32)
    # Float64 phase: after ten seconds a float32 one is too coarse and sounds like noise.
    cycles = np.cumsum(np.broadcast_to(np.asarray(frequency_hz, np.float64) / SAMPLE_RATE, samples))
    return table[(cycles * TABLE).astype(np.int64) % TABLE]


def _band(rng: np.random.Generator, samples: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Make noise between two frequencies; a second of it, tiled, since a transform over ten costs ten times as much."""
    spectrum = np.fft.rfft(rng.standard_normal(SAMPLE_RATE, dtype=np.float32))
    hertz = np.arange(spectrum.size)
    spectrum[(hertz < low_hz) | (hertz > high_hz)] = 0
    return np.resize(np.fft.irfft(spectrum).astype(np.float32), samples)


def _repeat(rng: np.random.Generator, samples: int, event: np.ndarray, per_second: float) -> np.ndarray:
    """Repeat `event` (cut or padded to the period) `per_second` times a second from a random point of the period."""
    period = np.zeros(int(SAMPLE_RATE / per_second), np.float32)
    length = min(event.size, period.size)
    period[:length] = event[:length]
    return np.resize(np.roll(period, rng.integers(period.size)), samples)


def ringing(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Struck bell: inharmonic partials, the higher the faster they die."""
    time, pitch_hz = _time(SAMPLE_RATE // 2), rng.uniform(520, 760)
    partials = ((1, 1.0), (2.76, 0.7), (5.4, 0.5), (8.2, 0.25))
    strike = sum(level * np.exp(-5 * ratio**0.5 * time) * np.sin(6.2832 * ratio * pitch_hz * time)
                 for ratio, level in partials)  # fmt: skip
    return _repeat(rng, samples, strike, rng.uniform(2, 3))


def chirping(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Short upward sweeps, about five a second."""
    length = int(rng.uniform(0.1, 0.14) * SAMPLE_RATE)
    low_hz = rng.uniform(1300, 1700)
    sweep = _stack(np.linspace(low_hz, 2.6 * low_hz, length), length, [1, 0.2])
    return _repeat(rng, samples, sweep * np.hanning(length).astype(np.float32), rng.uniform(4, 6))


def humming(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Low steady hum: few, quickly falling harmonics."""
    return _stack(rng.uniform(90, 135), samples, [1, 0.6, 0.35, 0.2, 0.1])


def buzzing(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Bright saw with a fast tremble: harmonics up to about 6 kHz."""
    tremble = 1 + 0.6 * np.sin(6.2832 * rng.uniform(25, 35) * _time(samples))
    return _stack(rng.uniform(190, 270), samples, [k**-0.5 for k in range(1, 26)]) * tremble.astype(np.float32)


def ticking(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Dry broadband clicks, six to nine a second."""
    time = _time(SAMPLE_RATE // 50)
    click = rng.standard_normal(time.size, dtype=np.float32) * np.exp(-time * rng.uniform(300, 500))
    return _repeat(rng, samples, click, rng.uniform(6, 9))


def hissing(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Steady high noise."""
    return _band(rng, samples, rng.uniform(3800, 4400), rng.uniform(6500, 7500))


def whistling(rng: np.random.Generator, samples: int) -> np.ndarray:
    """One high tone with vibrato."""
    vibrato = 1 + 0.04 * np.sin(6.2832 * (rng.uniform(4, 7) * _time(samples) + rng.uniform()))
    return _stack(rng.uniform(2000, 2800) * vibrato, samples, [1])


def rattling(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Middle noise band switched on and off a dozen times a second."""
    noise = _band(rng, SAMPLE_RATE, rng.uniform(500, 700), rng.uniform(1500, 1900))
    gate = 0.5 + 0.5 * np.tanh(6 * np.sin(6.2832 * int(rng.integers(10, 16)) * _time(SAMPLE_RATE)))
    return np.resize(np.roll(noise * gate, rng.integers(SAMPLE_RATE)), samples)
