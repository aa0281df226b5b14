"""The network of EZ-VSL and MarginNCE: a trunk and a projection per modality, compared by cosine.

Index convention: i is the image, j the audio. Shapes: B batch, C channels (512), F × T bins and frames of the
spectrogram, H × W positions of the feature map (pixels for an input image). sim_BBHW[i, j] is the cosine of every
position of image i with audio j; the localisation map of image i is sim[i, i].
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.core.distributed import Ranks
from avpipe.train.networks.resnet import Init, audio_trunk, evaluating, image_trunk
from avpipe.train.networks.similarity import own_maps, pooled_vectors, unit

CHANNELS = 512


def check_two_stream(name: str, init: str, temperature: float) -> None:
    """Raise AvpipeError for settings that are invalid for a two-stream network."""
    if init not in ("imagenet", "random"):
        raise AvpipeError(f'{name}: init must be "imagenet" or "random", not {init!r}')
    if not temperature > 0:
        raise AvpipeError(f"{name}: temperature must be above 0, got {temperature}")


class TwoStream(nn.Module):
    """ResNet-18 and a projection to 512 channels, for frames and for spectrograms.

    Calling the module computes `loss`, so that Fabric and DDP can wrap it; call the other methods on the unwrapped
    module. To load a checkpoint build with `init="random"`, which needs no ImageNet file.
    """

    ranks = Ranks()
    """The ranks whose features are contrasted; set by the trainer."""

    def __init__(self, init: Init, stride14: bool, imagenet_file: str | Path | None = None):
        """Build the network; `init="imagenet"` loads `imagenet_file` if given. Raises AvpipeError if it cannot."""
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
        """Return the scalar training loss of a batch of matching pairs and its terms; defined by each method."""
        raise NotImplementedError

    def localize(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> Tensor:
        """Return map_BHW: the cosine, in [-1, 1], of each position with the frame's audio.

        224 × 224 pixels give 7 × 7 positions. Computed in evaluation mode and without gradients, so that a map depends
        only on its own image and audio.
        """
        with evaluating(self):
            return own_maps(self.image_features(image_B3HW), self.audio_features(spec_B1FT))

    def embed(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, Tensor]:
        """Return (visual_BC, audio_BC), both of unit length, for retrieval by cosine, computed in evaluation mode."""
        with evaluating(self):
            return pooled_vectors(self.image_features(image_B3HW)), self.embed_audio(spec_B1FT)

    def embed_audio(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC of unit length, computed in evaluation mode."""
        with evaluating(self):
            return unit(self.audio_features(spec_B1FT))

    def contrasted(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features that the loss contrasts: those of this rank's batch or of all ranks' batches."""
        image_BCHW, audio_BC = self.image_features(image_B3HW), self.audio_features(spec_B1FT)
        return self.ranks.gather(image_BCHW), self.ranks.gather(audio_BC)

    def image_features(self, image_B3HW: Tensor) -> Tensor:
        """Return image_BCHW: the projected feature map, not normalised, of ImageNet-normalised frames."""
        return self.image_projection(self.image_trunk(image_B3HW))

    def audio_features(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC: the projected maximum over the audio feature map of `logspec`, not normalised."""
        return self.audio_projection(self.audio_trunk(spec_B1FT).amax(dim=(2, 3)))


def pair_means(score_BB: Tensor) -> dict[str, Tensor]:
    """Return detached means of scores: `positive` on the diagonal, `negative` off it (0 for a batch of one)."""
    score_BB = score_BB.detach()
    others = max(len(score_BB) * (len(score_BB) - 1), 1)
    positive = score_BB.diagonal().mean()
    return {"positive": positive, "negative": (score_BB.sum() - score_BB.diagonal().sum()) / others}
