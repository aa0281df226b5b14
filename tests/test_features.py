"""The log-spectrogram against SciPy's and against the arrays that the published code gave."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shared_files import PARITY

from pipeline.features import SPECS, LogSpectrogram, pcm_to_float

SPEC = SPECS["logspec"]


def scipy_logspec(wave: np.ndarray) -> np.ndarray:
    """As LVS and EZ-VSL write it."""
    import scipy.signal  # seconds that the start of pytest need not wait for

    _, _, density = scipy.signal.spectrogram(wave, 16_000, nperseg=512, noverlap=274)
    return np.log(density + 1e-7) / 12


def parity_files(stem: str) -> list:
    files = sorted(PARITY.glob(f"{stem}_s*.npz")) if PARITY else []
    skip = pytest.mark.skip(reason=f"no {stem}_s*.npz: set AVPIPE_PARITY to the folder of parity files")
    return [pytest.param(file, id=file.stem) for file in files] or [pytest.param(None, id=stem, marks=skip)]


SIGNALS = {
    "silence": lambda count, noise: np.zeros(count),
    "constant": lambda count, noise: np.full(count, 0.5),
    "noise": lambda count, noise: noise.standard_normal(count).clip(-1, 1),
    "whisper": lambda count, noise: noise.standard_normal(count) * 1e-4,
    "clipped": lambda count, noise: np.sign(noise.standard_normal(count)),
    "tone": lambda count, noise: np.sin(np.arange(count) * noise.uniform(0.001, 3)),
    "click": lambda count, noise: np.eye(1, count, int(noise.integers(count)))[0],
    "nyquist": lambda count, noise: np.tile([1.0, -1.0], count)[:count],
}


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(SIGNALS)), count=st.integers(512, 20_000), seed=st.integers(0, 2**32 - 1))
@example(kind="noise", count=512, seed=0)
@example(kind="noise", count=512 + 237, seed=0)
@example(kind="noise", count=512 + 238, seed=0)
@example(kind="silence", count=20_000, seed=0)
def test_logspec_equals_scipy(kind, count, seed):
    wave = SIGNALS[kind](count, np.random.default_rng(seed)).astype(np.float32)
    ours = SPEC.compute(wave)
    theirs = scipy_logspec(wave.astype(np.float64))
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (257, SPEC.columns(count))
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize(("samples", "columns"), [(48_000, 200), (160_000, 671)])
def test_three_and_ten_seconds_have_the_published_widths(samples, columns):
    assert SPEC.compute(np.zeros(samples, np.float32)).shape == (257, columns)


def test_silence_is_the_floor():
    assert np.allclose(SPEC.compute(np.zeros(2000, np.float32)), np.log(1e-7) / 12)


@pytest.mark.parametrize("file", parity_files("audio_lvs"))
def test_logspec_equals_the_published_lvs_arrays(file):
    golden = np.load(file)
    wave = golden["wave_i16"]
    for name, length, step in (("c10", 160_000, 1), ("c3", 48_000, 7), ("c2", 32_000, 7)):
        ours = SPEC.compute(pcm_to_float(np.resize(wave[:length], 160_000)))  # short sound is repeated to 10 s
        assert np.abs(ours[:, ::step] - golden[f"{name}_spec"]).max() < 1e-5
        assert ours.sum(dtype=np.float64) == pytest.approx(float(golden[f"{name}_sum"]), rel=1e-5)


@pytest.mark.parametrize("file", parity_files("audio_ezvsl"))
def test_logspec_equals_the_published_ez_vsl_arrays(file):
    golden = np.load(file)
    wave = golden["wave_i16"]
    windows = {"c10": wave[56_000:104_000], "c3": wave[:48_000], "c2": np.resize(wave[:32_000], 48_000)}
    for name, window in windows.items():
        assert np.abs(SPEC.compute(pcm_to_float(window)) - golden[f"{name}_spec"]).max() < 1e-5
        exact = SPEC.compute(window / np.float32(32767))  # EZ-VSL's own scaling
        assert exact.sum(dtype=np.float64) == pytest.approx(float(golden[f"{name}_sum"]), rel=1e-5)


def test_every_field_changes_the_digest():
    changed = [replace(SPEC, **{field.name: getattr(SPEC, field.name) * 2}) for field in fields(LogSpectrogram)]
    digests = {spec.digest for spec in [SPEC, *changed]}
    assert len(digests) == len(fields(LogSpectrogram)) + 1
    assert all(len(digest) == 8 for digest in digests)
    assert LogSpectrogram().digest == SPEC.digest


def test_pcm_is_divided_by_the_full_scale_of_16_bits():
    assert pcm_to_float(np.array([-32768, 0, 16384, 32767], np.int16)).tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]
