"""Audio features and test-time frames against the arrays that the published code gave."""

import numpy as np
import torch
from parity.compare import Comparison
from parity_recipes import from_json
from PIL import Image

from avpipe.pipeline.features import mel
from avpipe.pipeline.features.specs import SPECS, VggishPatches, pcm_to_float, sspl_normalise
from avpipe.train.data.frames import cropped_view, normalise, squashed_view

SPEC, TIE, VGGISH = (SPECS[name] for name in ("logspec", "tie-mel", "vggish"))
SECOND = 16_000
LOG = {"absolute": 1e-5}
DECIBEL = {"absolute": 1e-2}


def audio_lvs(compare: Comparison) -> None:
    """Sound repeated to 10 s."""
    golden = compare.golden
    compare.exempt("wave_i16", "clip_lengths")
    for clip, length in from_json(golden["clip_lengths"]).items():
        wave = pcm_to_float(np.resize(golden["wave_i16"][:length], 10 * SECOND))
        tail = wave[-len(golden[f"{clip}_wave_tail"]) :]
        compare(f"{clip}_wave_tail", tail)
        whole(compare, clip, SPEC.compute(wave), 7, LOG)


def audio_ssltie(compare: Comparison) -> None:
    """Sound repeated or cut to 10 s."""
    compare.exempt("wave_i16")
    for clip, length in (("c10", 10), ("c3", 3), ("c4", 4)):
        wave = pcm_to_float(np.resize(compare.golden["wave_i16"][: length * SECOND], 10 * SECOND))
        ours = TIE.compute(wave)
        whole(compare, clip, ours, 11, DECIBEL)
        compare(f"{clip}_dead_mel_rows", (ours == -100).all(axis=1).sum())
    bank = mel.htk_bank(TIE.sample_rate_hz, TIE.window, TIE.bands)
    compare("mel_fb_colsum", bank.sum(axis=0), absolute=1e-4)
    compare("mel_zero_filters", (bank.sum(axis=0) == 0).sum())


def whole(compare: Comparison, clip: str, ours: np.ndarray, step: int, tolerance: dict) -> None:
    """A spectrogram of 10 s: complete or every `step`-th column, with sum and spread of all of it."""
    complete = compare.golden[f"{clip}_spec"].shape[-1] == ours.shape[-1]
    compare(f"{clip}_shape", (1, *ours.shape))
    compare(f"{clip}_spec", ours if complete else ours[:, ::step], **tolerance)
    compare(f"{clip}_sum", ours.sum(dtype=np.float64), each=1e-5)
    compare(f"{clip}_std", ours.std(dtype=np.float64), each=1e-5)


def audio_ezvsl(compare: Comparison) -> None:
    """The central 3 s; of a shorter sound, which is repeated, as much."""
    wave = compare.golden["wave_i16"]
    middle = len(wave) // 2
    half = 3 * SECOND // 2
    windows = {
        "c10": wave[middle - half : middle + half],
        "c3": wave[: 3 * SECOND],
        "c2": np.resize(wave[: 2 * SECOND], 3 * SECOND),
    }
    # How the published reader cuts, against the exact slice: nothing of the port's.
    compare.exempt("wave_i16", *(f"{clip}_vs_exact_slice" for clip in windows))
    for clip, window in windows.items():
        # The published code divides by 32767, the port as everywhere by 32768; the tolerance holds for both.
        theirs_scaled = SPEC.compute(np.clip(window / np.float32(32767), -1, 1))
        ours = SPEC.compute(pcm_to_float(window))
        compare(f"{clip}_spec", ours, **LOG)
        compare.against(f"{clip}_spec scaled by 32767", theirs_scaled, compare.golden[f"{clip}_spec"], **LOG)
        compare(f"{clip}_sum", theirs_scaled.sum(dtype=np.float64), each=1e-5)
        if f"{clip}_spec_div32768_maxdiff" in compare.golden:
            compare(f"{clip}_spec_div32768_maxdiff", np.abs(ours - theirs_scaled).max(), absolute=1e-6)


def audio_sspl(compare: Comparison) -> None:
    """The middle 3 s of the repeated sound, scaled in SSPL's own way."""
    golden = compare.golden
    compare.exempt("wave_i16")
    for clip, length in (("c10", 10), ("c3", 3), ("c2", 2)):
        sound = np.tile(pcm_to_float(golden["wave_i16"][: length * SECOND]), 1 if length >= 3 else 2)
        wave = sound[len(sound) // 2 - 3 * SECOND // 2 :][: 3 * SECOND]
        before = wave.copy()
        scaled = sspl_normalise(wave)
        compare(f"{clip}_norm_head", scaled[: len(golden[f"{clip}_norm_head"])])
        compare(f"{clip}_norm_minmax", [scaled.min(), scaled.max()])
        examples = VGGISH.compute(wave)
        compare(f"{clip}_examples", examples, **LOG)
        compare(f"{clip}_sum", examples.sum(dtype=np.float64), each=1e-5)
        compare.against(f"{clip} waveform left as it was", wave, before)
    plain = VGGISH.patches(pcm_to_float(golden["wave_i16"][: 3 * SECOND]))
    compare("c3_examples_no_norm", plain, **LOG)
    compare("mel_matrix", vggish_bank(VGGISH), absolute=1e-9)


def vggish_bank(spec: VggishPatches) -> np.ndarray:
    return mel.vggish_bank(spec.sample_rate_hz, spec.points, spec.bands, spec.lowest_hz, spec.highest_hz)


def image_preproc(compare: Comparison) -> None:
    """The test-time views of LVS and EZ-VSL."""
    frame = Image.fromarray(compare.golden["image_u8"])
    compare.exempt("image_u8")
    for name, view in (("lvs", cropped_view), ("ez", squashed_view)):
        ours_3HW = normalise(torch.tensor(view(frame, 224))[None])[0]
        compare(f"{name}_g", ours_3HW[1], absolute=1e-6)
        compare(f"{name}_row100", ours_3HW[:, 100], absolute=1e-6)
        compare(f"{name}_mean", ours_3HW.double().mean((1, 2)), absolute=1e-6)
        compare(f"{name}_std", ours_3HW.double().std((1, 2), correction=0), absolute=1e-6)
