"""EZ-VSL: localising visual sounds the easy way (Mo & Morgado, ECCV 2022). Two trunks, the maximum of a cosine map.

Index convention: i is the image, j the audio. Shapes: B batch, C channels (512), F × T bins and frames of the
spectrogram, H × W positions of the feature map (pixels for an input image). sim_BBHW[i, j] is the cosine of every
position of image i with audio j; the map that is shown and scored is sim[i, i].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import AvpipeError
from train.backbones import Init, audio_trunk, evaluating, image_trunk
from train.ranks import Ranks
from train.similarity import own_maps, pooled_vectors, similarity_maps, unit

CHANNELS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class EZVSLConfig:
    """The settings of EZ-VSL; the defaults are the published set-up."""

    init: Init = "imagenet"
    """Image trunk: ImageNet weights (released model), or fresh ones."""

    temperature: float = 0.03
    """Divides the cosines: τ of the released model."""

    margin: float = 0.0
    """Taken from the cosine of the matching pair; MarginNCE, table 5."""

    stride14: bool = False
    """Whether the last stages keep stride 1, so that a map has twice the positions each way; for small frames."""

    def __post_init__(self) -> None:
        check_two_stream("EZ-VSL", self.init, self.temperature)


def check_two_stream(name: str, init: str, temperature: float) -> None:
    """Raise AvpipeError for settings that no two-stream network can have."""
    if init not in ("imagenet", "random"):
        raise AvpipeError(f'{name}: init must be "imagenet" or "random", not {init!r}')
    if not temperature > 0:
        raise AvpipeError(f"{name}: temperature must be above 0, got {temperature}")


class TwoStream(nn.Module):
    """ResNet-18 and a projection to 512 channels for frames and for spectrograms: the network of EZ-VSL and MarginNCE.

    Calling the module returns what `loss` returns, which is how Fabric and DDP drive it; the other methods are for the
    unwrapped module. To load a checkpoint build with `init="random"`: that needs no ImageNet file.
    """

    ranks = Ranks()
    """Whose features are contrasted; set by the trainer."""

    def __init__(self, init: Init, stride14: bool, imagenet_file: str | Path | None = None):
        """Build the network; `init="imagenet"` reads `imagenet_file` if given (AvpipeError where it cannot)."""
        super().__init__()
        self.image_trunk = image_trunk(init, stride14=stride14, weights_file=imagenet_file)
        self.image_projection = nn.Conv2d(CHANNELS, CHANNELS, kernel_size=1)
        self.audio_trunk = audio_trunk(stride14=stride14)
        self.audio_projection = nn.Linear(CHANNELS, CHANNELS)
        nn.init.kaiming_normal_(self.image_projection.weight, mode="fan_out", nonlinearity="relu")
        nn.init.trunc_normal_(self.audio_projection.weight, std=0.01)
        nn.init.zeros_(self.audio_projection.bias)

    def forward(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `loss` returns."""
        return self.loss(image_B3HW, spec_B1FT)

    def loss(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss of a batch of matching pairs, a scalar, and its parts; see the method's own loss."""
        raise NotImplementedError

    def localize(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> Tensor:
        """Return map_BHW: the cosine, in [-1, 1], of each position of a frame with its own audio; higher is sounding.

        224 × 224 pixels give 7 × 7 positions. Always in evaluation mode and without gradients, so a map depends on its
        own image and audio only.
        """
        with evaluating(self):
            return own_maps(self.image_features(image_B3HW), self.audio_features(spec_B1FT))

    def embed(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, Tensor]:
        """Return (visual_BC, audio_BC), both of unit length, for retrieval by cosine; in evaluation mode."""
        with evaluating(self):
            return pooled_vectors(self.image_features(image_B3HW)), self.embed_audio(spec_B1FT)

    def embed_audio(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC of unit length; in evaluation mode."""
        with evaluating(self):
            return unit(self.audio_features(spec_B1FT))

    def contrasted(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features that a loss contrasts: those of the batch, or of all ranks' batches."""
        image_BCHW, audio_BC = self.image_features(image_B3HW), self.audio_features(spec_B1FT)
        return self.ranks.gather(image_BCHW), self.ranks.gather(audio_BC)

    def image_features(self, image_B3HW: Tensor) -> Tensor:
        """Return image_BCHW: the projected feature map of frames without ImageNet mean and std, not normalised."""
        return self.image_projection(self.image_trunk(image_B3HW))

    def audio_features(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC: the projected maximum over the audio map of `logspec` spectrograms, not normalised."""
        return self.audio_projection(self.audio_trunk(spec_B1FT).amax(dim=(2, 3)))


class EZVSL(TwoStream):
    """The network with EZ-VSL's loss."""

    def __init__(self, config: EZVSLConfig, imagenet_file: str | Path | None = None):
        """Build the network; `init="imagenet"` reads `imagenet_file` if given (AvpipeError where it cannot)."""
        super().__init__(config.init, config.stride14, imagenet_file)
        self.config = config

    def loss(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and the parts that `ez_vsl_loss` describes."""
        return ez_vsl_loss(*self.contrasted(image_B3HW, spec_B1FT), self.config)


def ez_vsl_loss(
    image_features_BCHW: Tensor, audio_features_BC: Tensor, config: EZVSLConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Multiple-instance contrast: the best position of a frame must match its own audio (released code; paper, eq. 2).

    logits[i, j] is the largest cosine of image i with audio j, divided by the temperature; cross entropy against the
    diagonal along rows and along columns, summed. Features of any length. Returns the loss and, detached, the mean
    cosines `positive` (the own pair's, before the margin) and `negative` (0 for a batch of one).
    """
    best_BB = similarity_maps(image_features_BCHW, audio_features_BC).flatten(2).amax(dim=2)
    logits_BB = (best_BB - config.margin * torch.eye(len(best_BB)).to(best_BB)) / config.temperature
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    loss = F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)
    return loss, pair_means(best_BB)


def pair_means(score_BB: Tensor) -> dict[str, Tensor]:
    """Detached means of a matrix of scores: `positive` on the diagonal, `negative` off it (0 for a batch of one)."""
    score_BB = score_BB.detach()
    others = max(len(score_BB) * (len(score_BB) - 1), 1)
    positive = score_BB.diagonal().mean()
    return {"positive": positive, "negative": (score_BB.sum() - score_BB.diagonal().sum()) / others}


def object_map(image_trunk_features_BCHW: Tensor) -> Tensor:
    """Return map_BHW: mean over channels of the magnitude of an ImageNet trunk's features, EZ-VSL's object prior (OGL).

    Source: released code, `test.py` (the paper's section 3.4 names it object-guided localisation).
    """
    return image_trunk_features_BCHW.abs().mean(dim=1)


def published_names(own_names: Iterable[str]) -> dict[str, str]:
    """Map our state names to those of the published EZ-VSL checkpoints."""
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
