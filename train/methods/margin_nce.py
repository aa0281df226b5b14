"""MarginNCE: robust sound localisation with a negative margin (Park et al., ICASSP 2023), on EZ-VSL's network.

Index convention: i is the image, j the audio. Shapes: B batch, C channels (512), H × W positions of the feature map.
No code was published; choices that the paper leaves open are documented where they are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.methods.two_stream import TwoStream, check_two_stream, pair_means
from avpipe.train.networks.resnet import Init
from avpipe.train.networks.similarity import similarity_maps, weighted_mean

ANCHORS = ("image", "audio", "both")


@dataclass(frozen=True, kw_only=True, slots=True)
class MarginNCEConfig:
    """The settings of MarginNCE; the defaults are the published set-up."""

    init: Init = "imagenet"
    """Weights of the image trunk: "imagenet" or "random"."""

    margin: float = -0.2
    """Subtracted from the score of the matching pair; negative values tolerate false pairs (paper, tables 1 to 6)."""

    epsilon: float = 0.65
    """Cosine above which a position counts as sounding: ε of the paper, section 3.1."""

    mask_temperature: float = 0.03
    """Softness of the threshold, in units of the cosine: β of the paper, section 3.1."""

    temperature: float = 0.07
    """Divisor of the scores: τ of the paper, section 3.1."""

    anchor: str = "image"
    """The modality of the anchor, which is contrasted with the other modality of the whole batch.

    "image" is the paper's loss (a sum over j, equation 5), "audio" the other direction, "both" the mean of the two.
    """

    stride14: bool = False
    """Whether the last stages keep stride 1, which doubles height and width of the map; for small frames."""

    def __post_init__(self) -> None:
        check_two_stream("MarginNCE", self.init, self.temperature)
        if not self.mask_temperature > 0:
            raise AvpipeError(f"MarginNCE: mask_temperature must be above 0, got {self.mask_temperature}")
        if self.anchor not in ANCHORS:
            raise AvpipeError(f"MarginNCE: anchor must be one of {', '.join(ANCHORS)}, not {self.anchor!r}")


class MarginNCE(TwoStream):
    """EZ-VSL's network with MarginNCE's loss."""

    def __init__(self, config: MarginNCEConfig, imagenet_file: str | Path | None = None):
        """Build the network; `init="imagenet"` loads `imagenet_file` if given. Raises AvpipeError if it cannot."""
        super().__init__(config.init, config.stride14, imagenet_file)
        self.config = config

    def loss(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and the terms described in `margin_nce_loss`."""
        return margin_nce_loss(*self.contrasted(image_B3HW, spec_B1FT), self.config)


def pair_scores(sim_BBHW: Tensor, config: MarginNCEConfig) -> Tensor:
    """Return score_BB[i, j]: the mean cosine of image i with audio j over its sounding positions (paper, eq. 2, 3)."""
    return weighted_mean(sim_BBHW, torch.sigmoid((sim_BBHW - config.epsilon) / config.mask_temperature))


def margin_nce_loss(
    image_features_BCHW: Tensor, audio_features_BC: Tensor, config: MarginNCEConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """−mean log e^{(S_ii − m)/τ} / (e^{(S_ii − m)/τ} + Σ_{j≠i} e^{S_ij/τ}), S the pair scores (paper, equation 5).

    The features are those of matching pairs and need not be normalised; gradients flow through the masks. Returns the
    loss and, detached, the mean scores `positive` (before the margin) and `negative`.
    """
    score_BB = pair_scores(similarity_maps(image_features_BCHW, audio_features_BC), config)
    logits_BB = (score_BB - config.margin * torch.eye(len(score_BB)).to(score_BB)) / config.temperature
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    losses = {"image": F.cross_entropy(logits_BB, own_B), "audio": F.cross_entropy(logits_BB.T, own_B)}
    loss = (losses["image"] + losses["audio"]) / 2 if config.anchor == "both" else losses[config.anchor]
    return loss, pair_means(score_BB)
