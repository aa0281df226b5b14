"""SSL-TIE: exploiting transformation invariance and equivariance for self-supervised sound localisation (Liu et al.,
ACM MM 2022). LVS's network and released loss on two views of a frame, whose maps must follow the transform.

Index convention: i is the image, j the audio. Shapes: B batch, C channels (512), F × T bands and frames of `tie-mel`,
H × W positions of the feature map (pixels for an input image).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.methods.lvs import LVS, LVSConfig, lvs_loss
from avpipe.train.networks.similarity import own_maps
from avpipe.train.networks.warp import Warp, draw_warp


@dataclass(frozen=True, kw_only=True, slots=True)
class SSLTIEConfig(LVSConfig):
    """The settings of SSL-TIE; the defaults are the published set-up.

    Appearance augmentation, masking and audio mixing are settings of the recipe."""

    init: str = "random"
    """Weights of the image trunk: "random" (released model) or "imagenet"."""

    geometric: bool = True
    """Whether there is a second, transformed view (paper, table 1; models A and B have none)."""

    equivariance: float = 1.0
    """λ, weight of the distance between the maps of the two views; 0 for none (table 1, models C to E).

    Scaled as in the released code, ½(L₁ + L₂) + λ·MSE; the paper has L₁ + L₂ + 2·L_geo.
    """

    max_angle: int = 30
    """Largest rotation in either direction, in degrees; integers are drawn (released scripts)."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is a new class, not the one that this method was compiled for.
        LVSConfig.__post_init__(self)
        if not 0 <= self.max_angle <= 180:
            raise AvpipeError(f"SSL-TIE: max_angle must be from 0 to 180 degrees, got {self.max_angle}")
        if self.equivariance < 0:
            raise AvpipeError(f"SSL-TIE: equivariance must be at least 0, got {self.equivariance}")


class SSLTIE(LVS):
    """LVS's network with SSL-TIE's two-branch loss; `localize` and `embed` are those of LVS."""

    config: SSLTIEConfig

    def __init__(self, config: SSLTIEConfig, imagenet_file: str | Path | None = None):
        """Build the network; `init="imagenet"` loads `imagenet_file` if given. Raises AvpipeError if it cannot."""
        super().__init__(config, imagenet_file)

    def loss(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute ½(L₁ + L₂) + λ·MSE for a batch of matching pairs, under a transform drawn from torch's generator.

        image_B3HW: frames, augmented, ImageNet mean and std removed. spec_B1FT: `tie-mel`, decibels. Returns the scalar
        loss and the terms of `two_branch_loss`, or LVS's loss and its terms if there is no second view.
        """
        if not self.config.geometric:
            return super().loss(image_B3HW, spec_B1FT)
        all_ranks_warp = draw_warp(len(image_B3HW) * self.ranks.world_size, self.config.max_angle, image_B3HW.device)
        warp = all_ranks_warp.chunk(self.ranks.rank, self.ranks.world_size)
        return self.two_branch_loss(image_B3HW, spec_B1FT, warp)

    def two_branch_loss(self, image_B3HW: Tensor, spec_B1FT: Tensor, warp: Warp) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss under a given transform (paper, equations 5 to 8; released `train_one_epoch`).

        Both branches get the same spectrograms, in a forward pass of their own, which matters for batch norm (released
        code). Gradients flow into both maps. The terms, detached: `plain` and `warped` (L₁, L₂), `geometric` (the MSE),
        and `positive`, `easy`, `hard` of the plain branch.
        """
        plain = self.image_features(image_B3HW), self.audio_features(spec_B1FT)
        warped = self.image_features(warp(image_B3HW)), self.audio_features(spec_B1FT)
        plain_loss, terms = lvs_loss(*map(self.ranks.gather, plain), self.config)
        warped_loss, _ = lvs_loss(*map(self.ranks.gather, warped), self.config)
        map_BHW, warped_BHW = own_maps(*plain), own_maps(*warped)
        # Resize to the other map, which is larger than half the plain map if 16 does not divide the small frame.
        geometric = F.mse_loss(warped_BHW, warp(map_BHW[:, None], warped_BHW.shape[1:])[:, 0])
        total = (plain_loss + warped_loss) / 2 + self.config.equivariance * geometric
        losses = {"plain": plain_loss, "warped": warped_loss, "geometric": geometric}
        return total, {name: value.detach() for name, value in losses.items()} | terms
