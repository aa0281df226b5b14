"""EZ-VSL: localising visual sounds the easy way (Mo & Morgado, ECCV 2022). Two trunks, max of a cosine map.

Index convention: i is the image, j the audio. Shapes: B batch, C channels (512), H × W positions of the feature map.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avpipe.train.methods.two_stream import TwoStream, check_two_stream, pair_means
from avpipe.train.networks.resnet import Init
from avpipe.train.networks.similarity import similarity_maps


@dataclass(frozen=True, kw_only=True, slots=True)
class EZVSLConfig:
    """The settings of EZ-VSL; the defaults are the published set-up."""

    init: Init = "imagenet"
    """Weights of the image trunk: "imagenet" (released model) or "random"."""

    temperature: float = 0.03
    """Divisor of the cosines: τ of the released model."""

    margin: float = 0.0
    """Subtracted from the cosine of the matching pair; MarginNCE, table 5."""

    stride14: bool = False
    """Whether the last stages keep stride 1, which doubles height and width of the map; for small frames."""

    def __post_init__(self) -> None:
        check_two_stream("EZ-VSL", self.init, self.temperature)


class EZVSL(TwoStream):
    """The two-stream network with EZ-VSL's loss."""

    def __init__(self, config: EZVSLConfig, imagenet_file: str | Path | None = None):
        """Build the network; `init="imagenet"` loads `imagenet_file` if given. Raises AvpipeError if it cannot."""
        super().__init__(config.init, config.stride14, imagenet_file)
        self.config = config

    def loss(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and the terms described in `ez_vsl_loss`."""
        return ez_vsl_loss(*self.contrasted(image_B3HW, spec_B1FT), self.config)


def ez_vsl_loss(
    image_features_BCHW: Tensor, audio_features_BC: Tensor, config: EZVSLConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Multiple-instance contrastive loss: a frame's best position must match its audio (released code; paper, eq. 2).

    logits[i, j] is the largest cosine of image i with audio j, divided by the temperature; the loss is the sum of the
    cross entropies against the diagonal along rows and along columns. The features need not be normalised. Returns the
    loss and, detached, the mean cosines `positive` (matching pairs, before the margin) and `negative` (0 for a batch of
    one).
    """
    best_BB = similarity_maps(image_features_BCHW, audio_features_BC).flatten(2).amax(dim=2)
    logits_BB = (best_BB - config.margin * torch.eye(len(best_BB)).to(best_BB)) / config.temperature
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    loss = F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)
    return loss, pair_means(best_BB)


def object_map(image_trunk_features_BCHW: Tensor) -> Tensor:
    """Return map_BHW, EZ-VSL's object prior (OGL): the mean absolute value over the channels of an ImageNet trunk.

    Source: released code, `test.py` (the paper's section 3.4 names it object-guided localisation).
    """
    return image_trunk_features_BCHW.abs().mean(dim=1)


def published_names(own_names: Iterable[str]) -> dict[str, str]:
    """Map our state keys to those of the published EZ-VSL checkpoints."""
    prefixes = {
        "image_trunk.": "imgnet.",
        "image_projection.": "img_proj.",
        "audio_trunk.": "audnet.",
        "audio_projection.": "aud_proj.",
    }

    def published(own: str) -> str:
        prefix = next(prefix for prefix in prefixes if own.startswith(prefix))
        return prefixes[prefix] + own.removeprefix(prefix)

    return {own: published(own) for own in own_names}
