"""The feature specs of `avpipe.pipeline.features.specs` in torch: batches of waveforms to features, on any device.

Shapes: B batch, T samples, W windows, F frequency bins or bands.
"""

from functools import singledispatch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avpipe.pipeline.features import mel
from avpipe.pipeline.features.specs import SPECS, LogMel, LogSpectrogram, Spec, TieMel, VggishPatches, tukey


class SpecTransform(nn.Module):
    """`SPECS[name].compute` for a batch: wave_BT, float in [-1, 1], to (B, *shape), where T is the spec's `samples`.

    It computes in the precision of the waveform, single or double, regardless of autocast: the logarithm of a power in
    bfloat16 is off by decibels.
    """

    def __init__(self, name: str):
        super().__init__()
        self.spec = SPECS[name]
        taper, bank = _tables(self.spec)
        self.register_buffer("taper", torch.from_numpy(taper.copy()), persistent=False)
        self.register_buffer("bank", None if bank is None else torch.from_numpy(bank.copy()), persistent=False)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return the features of a batch of waveforms."""
        with torch.autocast(wave_BT.device.type, enabled=False):
            wave_BT = wave_BT if wave_BT.dtype == torch.float64 else wave_BT.float()
            bank = None if self.bank is None else self.bank.to(wave_BT.dtype)
            return _compute(self.spec, wave_BT, self.taper.to(wave_BT.dtype), bank)


def _tables(spec: Spec) -> tuple[np.ndarray, np.ndarray | None]:
    """Return window and filter bank of a spec, the same as in the NumPy implementation."""
    rate = spec.sample_rate_hz
    if isinstance(spec, LogSpectrogram):
        return tukey(spec.window, spec.tukey_alpha), None
    if isinstance(spec, TieMel):
        return mel.hann(spec.window), mel.htk_bank(rate, spec.window, spec.bands)
    if isinstance(spec, LogMel):
        return mel.hann(spec.window), mel.slaney_bank(rate, spec.window, spec.bands)
    bank = mel.vggish_bank(rate, spec.points, spec.bands, spec.lowest_hz, spec.highest_hz)
    return mel.hann(spec.window), bank


@singledispatch
def _compute(spec: Spec, wave_BT: Tensor, taper: Tensor, bank: Tensor | None) -> Tensor:
    raise TypeError(f"{type(spec).__name__} is not implemented in torch")


@_compute.register
def _(spec: LogSpectrogram, wave_BT: Tensor, taper: Tensor, bank: None) -> Tensor:
    frames_BWT = wave_BT.unfold(-1, spec.window, spec.hop)
    frames_BWT = frames_BWT - frames_BWT.mean(-1, keepdim=True)
    power_BWF = _power(frames_BWT * taper, spec.window) / (spec.sample_rate_hz * taper.square().sum())
    power_BWF[..., 1:-1] *= 2  # one-sided: all bins but DC and Nyquist stand for two
    return torch.log(power_BWF.transpose(1, 2) + spec.epsilon) / spec.divisor


@_compute.register
def _(spec: TieMel, wave_BT: Tensor, taper: Tensor, bank: Tensor) -> Tensor:
    half = spec.window // 2
    padded_BT = F.pad(wave_BT[:, None], (half, half), mode="reflect")[:, 0]
    power_BWF = _power(padded_BT.unfold(-1, spec.window, spec.hop) * taper, spec.window) / taper.square().sum()
    return _decibels(power_BWF @ bank, spec.floor).transpose(1, 2)


@_compute.register
def _(spec: LogMel, wave_BT: Tensor, taper: Tensor, bank: Tensor) -> Tensor:
    half = spec.window // 2
    power_BWF = _power(F.pad(wave_BT, (half, half)).unfold(-1, spec.window, spec.hop) * taper, spec.window)
    level_BFW = _decibels(power_BWF @ bank, spec.floor).transpose(1, 2)
    return torch.maximum(level_BFW, level_BFW.amax((1, 2), keepdim=True) - spec.range_db)


@_compute.register
def _(spec: VggishPatches, wave_BT: Tensor, taper: Tensor, bank: Tensor) -> Tensor:
    lifted_BT = wave_BT - wave_BT.amin(
        -1, keepdim=True
    )  # SSPL's scaling, as avpipe.pipeline.features.specs.sspl_normalise
    scaled_BT = (lifted_BT / (lifted_BT.amax(-1, keepdim=True) + 1e-3) - 0.5) * 2
    magnitude_BWF = _power(scaled_BT.unfold(-1, spec.window, spec.hop) * taper, spec.points).sqrt()
    patches = magnitude_BWF.shape[1] // spec.patch
    level_BWF = torch.log(magnitude_BWF[:, : patches * spec.patch] @ bank + spec.offset)
    return level_BWF.unflatten(1, (patches, spec.patch))


def _power(frames_BWT: Tensor, points: int) -> Tensor:
    spectrum = torch.fft.rfft(frames_BWT, points)
    return spectrum.real.square() + spectrum.imag.square()


def _decibels(power: Tensor, floor: float) -> Tensor:
    return 10 * torch.log10(power.clamp_min(floor))
