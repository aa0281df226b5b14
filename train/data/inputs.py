"""Network inputs from a loaded batch, on the device: colour jitter and normalisation, audio mixing and masking."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from avpipe.train.data.augment.colour import recolour
from avpipe.train.data.buffer_pool import BATCHES
from avpipe.train.data.frames import normalise
from avpipe.train.data.loader import Batch
from avpipe.train.data.torch_features import SpecTransform

# Fields that stay in host memory, because they decide which samples are processed.
HOST_FIELDS = ("colour", "weight")


class Inputs:
    """Callable that turns batches of one feature spec into the inputs of a method."""

    def __init__(self, device: torch.device, feature: str):
        self.device, self.feature = device, feature

    @cached_property
    def _transform(self) -> SpecTransform:
        """Created only if sounds are mixed: foreign shards may hold features that avpipe cannot compute."""
        return SpecTransform(self.feature).to(self.device)

    def to_device(self, batch: Batch) -> Batch:
        """Copy all fields but HOST_FIELDS to the device; asynchronous from pinned memory."""
        return {
            name: tensor if name in HOST_FIELDS else tensor.to(self.device, non_blocking=True)
            for name, tensor in batch.items()
        }

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (image_B3HW, or image_BV3HW for several views; spec_B1FT), both float32 regardless of autocast."""
        batch = self.to_device(batch)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._images(batch), self._sounds(batch)

    def _images(self, batch: Batch) -> Tensor:
        image = batch["image"]
        if "colour" in batch:
            image = recolour(image.flatten(0, -4), batch["colour"].flatten(0, -2)).view(image.shape)
        return normalise(image)

    def _sounds(self, batch: Batch) -> Tensor:
        spec_B1FT = _float32(batch["spec"])
        if "weight" in batch:
            mixed = batch["weight"].nonzero()[:, 0]
            if len(mixed):
                spec_B1FT[mixed.to(self.device)] = self._mixed(batch["sounds"], batch["weight"], mixed)
        return masked(spec_B1FT, batch["mask"]) if "mask" in batch else spec_B1FT

    def _mixed(self, sounds_B2T: Tensor, weight_B: Tensor, indices: Tensor) -> Tensor:
        """Return the features of the blended waveforms of the samples at `indices`. Source: SSL-TIE, equation 4."""
        weight = weight_B[indices].to(self.device)[:, None]
        own, other = (sounds_B2T[indices.to(self.device)].float() / 32768).unbind(1)
        return self._transform((1 - weight) * own + weight * other)[:, None]


def _float32(spec_B1FT: Tensor) -> Tensor:
    """Return a float32 copy, on the CPU in memory from the pool."""
    if spec_B1FT.device.type != "cpu":
        return spec_B1FT.float()
    return BATCHES.empty(tuple(spec_B1FT.shape), np.float32).copy_(spec_B1FT)


def masked(spec_B1FT: Tensor, mask_B4: Tensor) -> Tensor:
    """Set a range of windows and a range of bands of each sample to the sample's minimum.

    mask_B4: first window and number of windows, first band and number of bands; 0 windows or bands mask nothing.
    `tie-mel` has its floor in the 28 bands that are always empty; SSL-TIE's released code masks the power before the
    conversion to decibels, which gives the same floor.
    """
    hidden = torch.zeros_like(spec_B1FT, dtype=torch.bool)
    for axis, (first_B, length_B) in ((3, mask_B4[:, :2].T), (2, mask_B4[:, 2:].T)):
        position = torch.arange(spec_B1FT.shape[axis], device=spec_B1FT.device) - first_B[:, None]
        inside = (position >= 0) & (position < length_B[:, None])
        hidden |= inside[:, None, None, :] if axis == 3 else inside[:, None, :, None]
    return torch.where(hidden, spec_B1FT.amin((1, 2, 3), keepdim=True), spec_B1FT)
