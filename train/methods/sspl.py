"""SSPL: self-supervised predictive learning, without negatives (Song et al., CVPR 2022), with or without its PCM.

Frozen extractors, audio-guided attention over the frame, and a SimSiam head on two views of the frame. Shapes: B batch,
V views (2), C channels (512), A audio channels (128), H × W positions (pixels for an input image), P patches of T × F,
96 × 64 (3 for 3 s).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.networks.pcm import PredictiveCoding
from avpipe.train.networks.resnet import Init, evaluating
from avpipe.train.networks.similarity import own_maps, pooled_vectors, unit
from avpipe.train.networks.vgg import EMBEDDING, VGGish, freeze, patch_means, vgg16_trunk

CHANNELS = 512
FUSIONS = ("attention", "concatenate", "multiply", "add")
SCALINGS = ("min-max", "sigmoid", "softmax", "relu", "relu-softmax")


@dataclass(frozen=True, kw_only=True, slots=True)
class SSPLConfig:
    """The settings of SSPL; the defaults are the published set-up with PCM."""

    init: Init = "imagenet"
    """Weights of the extractors: "imagenet" (VGG-16 on ImageNet, VGGish on AudioSet) or "random" (paper, table 3)."""

    pcm: bool = True
    """Whether visual features pass through the predictive coding module; paper, table 3."""

    cycles: int = 4
    """Passes of the module after the first, which the paper's T includes: its T = 5 is 4 here."""

    scaling: str = "min-max"
    """How the attention turns cosines into weights; paper, table 5."""

    fusion: str = "attention"
    """How frame and sound are fused; all but "attention" average the frame over positions (supplement, table S5)."""

    stop_gradient: bool = True
    """Whether projections get no gradient as targets of the other view's prediction; paper, table 3."""

    train_extractors: bool = False
    """Whether the extractors are trained too, as in the paper's training from scratch (table 3, a and c)."""

    rest_rate: float = 0.4
    """Learning rate of all but the SimSiam head, relative to the head's: 2e-5 / 5e-5 with PCM (released code)."""

    def __post_init__(self) -> None:
        if not self.rest_rate > 0:
            raise AvpipeError(f"SSPL: rest_rate must be above 0, got {self.rest_rate}")
        if self.init not in ("imagenet", "random"):
            raise AvpipeError(f'SSPL: init must be "imagenet" or "random", not {self.init!r}')
        if self.scaling not in SCALINGS:
            raise AvpipeError(f"SSPL: scaling must be one of {', '.join(SCALINGS)}, not {self.scaling!r}")
        if self.fusion not in FUSIONS:
            raise AvpipeError(f"SSPL: fusion must be one of {', '.join(FUSIONS)}, not {self.fusion!r}")
        if self.cycles < 0:
            raise AvpipeError(f"SSPL: cycles must be at least 0, got {self.cycles}")


class SSPL(nn.Module):
    """The network of SSPL with its loss.

    Calling the module computes `loss`, so that Fabric and DDP can wrap it; call the other methods on the unwrapped
    module. To load a checkpoint build with `init="random"`, which needs no files.
    """

    def __init__(self, config: SSPLConfig, imagenet_file: str | Path | None = None):
        """Build the network; `init="imagenet"` loads both extractors from the folder `imagenet_file` if given."""
        super().__init__()
        self.config = config
        self.frame = vgg16_trunk(config.init, imagenet_file)
        self.sound = VGGish(config.init, imagenet_file)
        if not config.train_extractors:
            freeze(self.frame)
            freeze(self.sound)
        self.sound_head = nn.Sequential(
            nn.Linear(EMBEDDING, CHANNELS), nn.ReLU(inplace=True), nn.Linear(CHANNELS, CHANNELS)
        )
        self.pcm = PredictiveCoding(config.cycles) if config.pcm else None
        fused = 2 * CHANNELS if config.fusion == "concatenate" else CHANNELS
        self.projector = nn.Sequential(
            *_normed(fused, 2048), *_normed(2048, 2048), nn.Linear(2048, 2048, bias=False), _plain_norm(2048)
        )
        self.predictor = nn.Sequential(*_normed(2048, 512), nn.Linear(512, 2048))

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """Return parameter groups: the head at the full rate, the rest slower, the PCM's rates without weight decay."""
        groups: dict[str, list] = {"head": [], "rest": [], "rates": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = (
                    "rates" if "_rates." in name else "head" if name.startswith(("projector", "predictor")) else "rest"
                )
                groups[kind].append(parameter)
        slow = learning_rate * self.config.rest_rate
        return [
            {"params": groups["head"], "lr": learning_rate},
            {"params": groups["rest"], "lr": slow},
            {"params": groups["rates"], "lr": slow, "weight_decay": 0.0},
        ]

    def forward(self, image_BV3HW: Tensor, patches_B1PTF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `loss` returns."""
        return self.loss(image_BV3HW, patches_B1PTF)

    def loss(self, image_BV3HW: Tensor, patches_B1PTF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the symmetric negative cosine of predictions and projections of two views (paper, equations 6 to 8).

        image_BV3HW: two views of each frame, ImageNet mean and std removed. patches_B1PTF: `vggish` features. Returns
        the scalar loss, in [−1, 1], and, detached, `spread`, the mean standard deviation of the unit projections over
        the batch: near 0 if the representation has collapsed, 1/√2048 ≈ .022 if it is evenly spread.
        """
        audio = self.audio_features(patches_B1PTF)
        projections = [
            self.projector(self.fuse(self.image_features(v, audio[0]), audio[1])) for v in image_BV3HW.unbind(1)
        ]
        return simsiam_loss(projections, [self.predictor(z) for z in projections], self.config.stop_gradient)

    def localize(self, image_B3HW: Tensor, patches_B1PTF: Tensor) -> Tensor:
        """Return map_BHW: the cosine, in [-1, 1], of each position with the frame's audio, before any scaling.

        224 × 224 pixels give 14 × 14 positions. Computed in evaluation mode and without gradients.
        """
        with evaluating(self):
            embedding_BA, audio_BC = self.audio_features(patches_B1PTF)
            return own_maps(self.image_features(image_B3HW, embedding_BA), audio_BC)

    def embed(self, image_B3HW: Tensor, patches_B1PTF: Tensor) -> tuple[Tensor, Tensor]:
        """Return (visual_BC, audio_BC), both of unit length, for retrieval by cosine, computed in evaluation mode."""
        with evaluating(self):
            embedding_BA, audio_BC = self.audio_features(patches_B1PTF)
            return pooled_vectors(self.image_features(image_B3HW, embedding_BA)), unit(audio_BC)

    def embed_audio(self, patches_B1PTF: Tensor) -> Tensor:
        """Return audio_BC of unit length, computed in evaluation mode."""
        with evaluating(self):
            return unit(self.audio_features(patches_B1PTF)[1])

    def audio_features(self, patches_B1PTF: Tensor) -> tuple[Tensor, Tensor]:
        """Return (embedding_BA of unit length for the PCM, audio_BC for the attention), averaged over the patches."""
        patches = patches_B1PTF[:, 0]
        embedding_NA = self.sound(patches.flatten(0, 1)[:, None])
        by_clip = embedding_NA.unflatten(0, patches.shape[:2])
        head = self.sound_head(embedding_NA).unflatten(0, patches.shape[:2])
        return unit(patch_means(by_clip)), patch_means(head)

    def image_features(self, image_B3HW: Tensor, embedding_BA: Tensor) -> Tensor:
        """Return the signed feature map image_BCHW that is the input of the attention."""
        features = self.frame(image_B3HW)
        return self.pcm(features, embedding_BA) if self.pcm is not None else features

    def fuse(self, image_BCHW: Tensor, audio_BC: Tensor) -> Tensor:
        """Return the audio-visual vector fused_BC (2C for "concatenate"): the attended one, or one of table S5."""
        if self.config.fusion == "attention":
            return self.attend(image_BCHW, audio_BC)
        visual_BC = image_BCHW.mean(dim=(2, 3))
        if self.config.fusion == "concatenate":
            return torch.cat([visual_BC, audio_BC], dim=1)
        return visual_BC * audio_BC if self.config.fusion == "multiply" else visual_BC + audio_BC

    def attend(self, image_BCHW: Tensor, audio_BC: Tensor) -> Tensor:
        """Return fused_BC: the sum of the features over positions, weighted by the scaled cosines (eq. 2, 3)."""
        weight_BHW = scaled(own_maps(image_BCHW, audio_BC), self.config.scaling)
        return (image_BCHW * weight_BHW[:, None]).sum(dim=(2, 3))


def scaled(map_BHW: Tensor, scaling: str) -> Tensor:
    """Return weights of positions from their cosines (paper, table 5); "min-max" is eq. 3, 0 to 1 within each map."""
    flat = map_BHW.flatten(1)
    if "relu" in scaling:
        flat = F.relu(flat)
    if scaling == "min-max":
        lowest = flat.amin(1, keepdim=True)
        flat = (flat - lowest) / (flat.amax(1, keepdim=True) - lowest + 1e-10)
    elif scaling == "sigmoid":
        flat = torch.sigmoid(flat)
    elif "softmax" in scaling:
        flat = torch.softmax(flat, dim=1)
    return flat.view_as(map_BHW)


def simsiam_loss(
    projections: list[Tensor], predictions: list[Tensor], stop_gradient: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return half the sum of the negative cosines of each view's prediction with the other's projection (eq. 8)."""
    (z1, z2), (p1, p2) = projections, predictions
    if stop_gradient:
        z1, z2 = z1.detach(), z2.detach()
    loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
    return loss, {"spread": F.normalize(z1.detach(), dim=1).std(dim=0, correction=0).mean()}


def published_names(own_names: Iterable[str]) -> dict[str, str]:
    """Map our state keys to those of the published SSPL checkpoints, prefixed by the names of its four networks."""
    return {own: _published(own) for own in own_names}


def _published(own: str) -> str:
    module, _, rest = own.partition(".")
    if module == "pcm":
        return f"net_pc.{_published_pcm(rest)}"
    if module in ("projector", "predictor"):
        index, _, kind = rest.partition(".")
        layer, position = divmod(int(index), 3)
        last = module == "predictor" and layer == 1
        return f"net_ssl_head.{module}.layer{layer + 1}.{kind if last else f'{position}.{kind}'}"
    return {"frame": "net_frame.feat_extractor.", "sound": "net_sound.", "sound_head": "net_sound.fc."}[module] + rest


def _published_pcm(own: str) -> str:
    module, _, rest = own.partition(".")
    index, _, kind = rest.partition(".")
    match module:
        case "to_audio":
            return f"PredProcess.0.{rest}"
        case "feedback":
            return f"PredProcess.{int(index) + 1}.conv2d.{kind}"
        case "feedforward":
            return f"ErrorProcess.{index}.{'convtrans2d.' if index == '2' else ''}{kind}"
        case "output":
            return f"ErrorProcess.3.{rest}"
    names = {"prediction_rates": "b0", "error_rates": "a0", "first_down_norms": "BNPred", "first_up_norms": "BNError"}
    return f"{(names | {'down_norms': 'BNPred_step', 'up_norms': 'BNError_step'})[module]}.{rest}"


def _normed(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)


def _plain_norm(size: int) -> nn.Module:
    return nn.BatchNorm1d(size, affine=False)
