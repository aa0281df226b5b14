"""VGG-H: the supervised ear that retrieval is compared with (SSL-TIE, section 4.3): ResNet-18 on spectrograms, labels.

Shapes: B batch, C channels (512), K classes, F × T bins and frames of the spectrogram.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.networks.resnet import audio_trunk, evaluating
from avpipe.train.networks.similarity import unit


@dataclass(frozen=True, kw_only=True, slots=True)
class VGGHConfig:
    """The settings of VGG-H. SSL-TIE takes its vectors from VGG-Sound's published classifier, and names no training."""

    classes: int = 309
    """Labels that it tells apart, at most; VGG-Sound has 309."""

    init: str = "random"
    """Fresh weights; there are no others."""

    def __post_init__(self) -> None:
        if self.classes < 2 or self.init != "random":
            raise AvpipeError("VGG-H: needs at least 2 classes, and init=random")


class VGGH(nn.Module):
    """An audio trunk with a linear classifier; it sees nothing, so it has no maps."""

    def __init__(self, config: VGGHConfig, imagenet_file: str | Path | None = None):
        """Build the network; no published weights enter it."""
        super().__init__()
        self.config = config
        self.audio_trunk = audio_trunk(stride14=False)
        self.classifier = nn.Linear(512, config.classes)

    def forward(self, image_B3HW: Tensor, spec_B1FT: Tensor, label_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `loss` returns."""
        return self.loss(image_B3HW, spec_B1FT, label_B)

    def loss(self, image_B3HW: Tensor, spec_B1FT: Tensor, label_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the label numbers, int64 (B,); the frames are not looked at. Part: `accuracy`, in [0, 1]."""
        logits_BK = self.classifier(self.audio_features(spec_B1FT))
        accuracy = (logits_BK.detach().argmax(dim=1) == label_B).float().mean()
        return F.cross_entropy(logits_BK, label_B), {"accuracy": accuracy}

    def localize(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> Tensor:
        """Raise AvpipeError: there is nothing to localise with."""
        raise AvpipeError("vgg-h hears and does not see: it has no maps, only retrieval from sound to sound")

    def embed_audio(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC of unit length; in evaluation mode."""
        with evaluating(self):
            return unit(self.audio_features(spec_B1FT))

    def audio_features(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC, the maximum over the audio map, not normalised."""
        return self.audio_trunk(spec_B1FT).amax(dim=(2, 3))
