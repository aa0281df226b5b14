"""VGG-H, the supervised baseline of audio retrieval (SSL-TIE, section 4.3): ResNet-18 classifying spectrograms.

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
    """The settings of VGG-H. SSL-TIE uses VGG-Sound's published classifier and describes no training."""

    classes: int = 309
    """Largest number of classes; VGG-Sound has 309."""

    init: str = "random"
    """Weights of the trunk; only "random" is supported."""

    def __post_init__(self) -> None:
        if self.classes < 2 or self.init != "random":
            raise AvpipeError("VGG-H: needs at least 2 classes and init=random")


class VGGH(nn.Module):
    """An audio trunk with a linear classifier; it ignores frames, so it has no maps."""

    def __init__(self, config: VGGHConfig, imagenet_file: str | Path | None = None):
        """Build the network; `imagenet_file` is ignored."""
        super().__init__()
        self.config = config
        self.audio_trunk = audio_trunk(stride14=False)
        self.classifier = nn.Linear(512, config.classes)

    def forward(self, image_B3HW: Tensor, spec_B1FT: Tensor, label_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `loss` returns."""
        return self.loss(image_B3HW, spec_B1FT, label_B)

    def loss(self, image_B3HW: Tensor, spec_B1FT: Tensor, label_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross entropy with the int64 class indices and the term `accuracy`, in [0, 1]; ignores frames."""
        logits_BK = self.classifier(self.audio_features(spec_B1FT))
        accuracy = (logits_BK.detach().argmax(dim=1) == label_B).float().mean()
        return F.cross_entropy(logits_BK, label_B), {"accuracy": accuracy}

    def localize(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> Tensor:
        """Raise AvpipeError: an audio-only network cannot localise."""
        raise AvpipeError("vgg-h is audio-only: it has no maps; use `avpipe retrieve`, from sound to sound")

    def embed_audio(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC of unit length, computed in evaluation mode."""
        with evaluating(self):
            return unit(self.audio_features(spec_B1FT))

    def audio_features(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC, the maximum over the audio feature map, not normalised."""
        return self.audio_trunk(spec_B1FT).amax(dim=(2, 3))
