"""The feature specs against SciPy, librosa, torchaudio and plain loops; the published arrays are test_parity's."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avpipe.pipeline.features.specs import SPECS, LogSpectrogram, pcm_to_float, sspl_normalise

SPEC, TIE, VGGISH, LOGMEL = (SPECS[name] for name in ("logspec", "tie-mel", "vggish", "logmel"))


def scipy_logspec(wave: np.ndarray) -> np.ndarray:
    """As LVS and EZ-VSL write it."""
    import scipy.signal  # seconds that the start of pytest need not wait for

    _, _, density = scipy.signal.spectrogram(wave, 16_000, nperseg=512, noverlap=274)
    return np.log(density + 1e-7) / 12


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


@pytest.mark.heavy  # PyTorch and librosa take their time to begin
@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values")
@pytest.mark.parametrize("kind", sorted(SIGNALS))
def test_tie_mel_equals_torchaudio(kind):
    transforms, torch = pytest.importorskip("torchaudio.transforms"), pytest.importorskip("torch")
    wave = SIGNALS[kind](TIE.samples, np.random.default_rng(3)).astype(np.float32)
    mel = transforms.MelSpectrogram(16_000, n_fft=512, hop_length=239, n_mels=257, normalized=True).double()
    theirs = transforms.AmplitudeToDB()(mel(torch.from_numpy(wave.astype(np.float64)))).numpy()
    ours = TIE.compute(wave)
    assert (ours.shape, ours.dtype) == (theirs.shape, np.float32) == (TIE.shape, np.float32)
    # torchaudio rounds its bank to single precision, up to 2.8e-5, which shows where a band is all but empty.
    assert np.abs(ours - theirs).max() < 0.1
    assert np.abs(ours - theirs).mean() < 1e-3


def test_vggish_equals_a_plain_loop():
    assert (sspl_normalise(np.zeros(9, np.float32)) == -1).all()
    wave = sspl_normalise(np.random.default_rng(5).standard_normal(48_000).clip(-1, 1)).astype(np.float64)
    to_mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    edges = np.linspace(to_mel(125), to_mel(7500), 66)
    for patch, window, band in [(0, 0, 0), (0, 95, 63), (1, 7, 20), (2, 95, 1)]:
        first = (patch * 96 + window) * 160
        taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
        piece = wave[first : first + 400] * taper
        total = 0.0
        for line in range(1, 257):
            magnitude = abs(np.sum(piece * np.exp(-2j * np.pi * line * np.arange(400) / 512)))
            low, middle, high = edges[band : band + 3]
            place = to_mel(line * 31.25)
            total += max(0, min((place - low) / (middle - low), (high - place) / (high - middle))) * magnitude
        assert VGGISH.patches(wave)[patch, window, band] == pytest.approx(np.log(total + 0.01), abs=1e-5)


@pytest.mark.slow  # Numba compiles librosa
@pytest.mark.parametrize("count", [700, 48_000])
def test_logmel_equals_librosa(count):
    librosa = pytest.importorskip("librosa")
    for kind, signal in SIGNALS.items():
        wave = signal(count, np.random.default_rng(4))
        power = librosa.feature.melspectrogram(y=wave, sr=16_000, n_fft=512, hop_length=160, n_mels=64)
        ours = LOGMEL.compute(wave)
        assert (ours.shape, ours.dtype) == (power.shape, np.float32)
        assert np.abs(ours - librosa.power_to_db(power)).max() < 1e-4, kind


SHAPES = {"logspec": (257, 200), "logspec-10s": (257, 671), "tie-mel": (257, 670), "vggish": (3, 96, 64)}
SHAPES |= {"logmel": (64, 301)}


@pytest.mark.parametrize("name", SPECS)
def test_every_spec_gives_the_shape_of_its_paper_in_float16_range(name):
    spec = SPECS[name]
    assert spec.shape == SHAPES[name] and spec.samples == spec.audio_s * 16_000
    for kind, signal in SIGNALS.items():
        array = spec.compute(signal(spec.samples, np.random.default_rng(6)).astype(np.float32))
        assert (kind, array.shape, array.dtype) == (kind, spec.shape, np.float32)
        assert np.abs(array).max() <= 100  # which not-a-number is not


@pytest.mark.parametrize("name", SPECS)
def test_every_field_changes_the_digest(name):
    spec = SPECS[name]
    changed = [replace(spec, **{field.name: getattr(spec, field.name) * 2}) for field in fields(spec)]
    digests = {each.digest for each in [spec, *changed]}
    assert len(digests) == len(fields(spec)) + 1
    assert all(len(digest) == 8 for digest in digests)
    assert type(spec)(audio_s=spec.audio_s).digest == spec.digest
    assert len({spec.digest for spec in SPECS.values()}) == len(SPECS)
    assert LogSpectrogram().digest == "6b815418"  # of the first version


def test_pcm_is_divided_by_the_full_scale_of_16_bits():
    assert pcm_to_float(np.array([-32768, 0, 16384, 32767], np.int16)).tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]
