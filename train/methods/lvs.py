"""LVS: localising visual sounds the hard way (Chen et al., CVPR 2021). Two trunks, a cosine map, a tri-map loss.

Index convention: i is the image, j the audio. Shapes: B batch, C channels (512), K logits of one image, F × T bins and
frames of the spectrogram, H × W positions of the feature map (pixels for an input image). sim_BBHW[i, j] is the cosine
of every position of image i with audio j; the localisation map of image i is sim[i, i].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.core.distributed import Ranks
from avpipe.train.networks.resnet import Init, audio_trunk, evaluating, image_trunk
from avpipe.train.networks.similarity import own_maps, pooled_vectors, similarity_maps, unit, weighted_mean

# The released code does not mask a sample's own column among its easy negatives but multiplies it by this factor. For
# the trunks' features (after a ReLU, so no cosine is negative) this acts as a mask; for signed features it could give a
# large logit. SSL-TIE's released code does the same.
OWN_COLUMN_FACTOR = -99.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LVSConfig:
    """The settings of LVS; the defaults are the published set-up."""

    init: Init = "imagenet"
    """Weights of the image trunk: "imagenet" (paper, section 5.3) or "random", as in the released constructor."""

    objective: str = "released"
    """The loss: "released", the cross entropy of the released code, or "paper", the formula of section 3.4."""

    hard_negatives: bool = True
    """Whether the background of the matching frame is a negative; paper, table 4."""

    tri_map: bool = True
    """Whether positions between the two thresholds are ignored; if not, epsilon_p is both; paper, table 4."""

    margin: float = 0.0
    """Subtracted from the cosine of the positive; MarginNCE, table 5."""

    epsilon_p: float = 0.65
    """Cosine above which a position counts as sounding; paper, section 5.3."""

    epsilon_n: float = 0.4
    """Cosine below which a position counts as background; between the two it is ignored; paper, section 5.3."""

    mask_temperature: float = 0.03
    """Softness of both thresholds, in units of the cosine: τ of the paper, section 5.3."""

    logit_temperature: float = 0.07
    """Divisor of the cosines before the cross entropy; from the released code, the paper has none."""

    spec_pool: int = 1
    """Average-pool the spectrogram by this factor in both axes before the audio trunk.

    1 in the published set-up. 2 cuts the audio trunk's work to a quarter: measured on a CPU, a training step with 3 s
    of sound is about 1.6 times as fast, with 10 s about 2.5 times.
    """

    def __post_init__(self) -> None:
        if self.init not in ("imagenet", "random"):
            raise AvpipeError(f'LVS: init must be "imagenet" or "random", not {self.init!r}')
        if self.objective not in ("released", "paper"):
            raise AvpipeError(f'LVS: objective must be "released" or "paper", not {self.objective!r}')
        if not -1 <= self.epsilon_n <= self.epsilon_p <= 1:
            raise AvpipeError(
                "LVS: needs -1 <= epsilon_n <= epsilon_p <= 1, "
                f"got epsilon_n = {self.epsilon_n}, epsilon_p = {self.epsilon_p}"
            )
        for name in ("mask_temperature", "logit_temperature"):
            if not getattr(self, name) > 0:
                raise AvpipeError(f"LVS: {name} must be above 0, got {getattr(self, name)}")
        if not isinstance(self.spec_pool, int) or self.spec_pool < 1:
            raise AvpipeError(f"LVS: spec_pool must be an integer of at least 1, got {self.spec_pool!r}")


class LVS(nn.Module):
    """The two-stream network of LVS with its loss.

    Calling the module computes `loss`, so that Fabric and DDP can wrap it; call the other methods on the unwrapped
    module. To load a checkpoint build with `init="random"`, which needs no ImageNet file.
    """

    ranks = Ranks()
    """The ranks whose features are contrasted; set by the trainer."""

    def __init__(self, config: LVSConfig, imagenet_file: str | Path | None = None):
        """Build the network; `init="imagenet"` loads `imagenet_file` if given. Raises AvpipeError if it cannot."""
        super().__init__()
        self.config = config
        self.image_trunk = image_trunk(config.init, stride14=True, weights_file=imagenet_file)
        self.audio_trunk = audio_trunk(stride14=True)

    def forward(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `loss` returns."""
        return self.loss(image_B3HW, spec_B1FT)

    def loss(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the training loss of a batch of matching pairs.

        image_B3HW: frames, ImageNet mean and std removed (224 × 224 pixels in the published set-up). spec_B1FT:
        `logspec` spectrograms, 257 bins, any length. Returns the scalar loss and the terms described in `lvs_loss`.
        """
        image_BCHW, audio_BC = self.image_features(image_B3HW), self.audio_features(spec_B1FT)
        return lvs_loss(self.ranks.gather(image_BCHW), self.ranks.gather(audio_BC), self.config)

    def localize(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> Tensor:
        """Return map_BHW: the cosine, in [-1, 1], of each position with the frame's audio.

        Inputs as for `loss`; 224 × 224 pixels give 14 × 14 positions. Computed in evaluation mode without gradients, so
        that a map depends only on its own image and audio.
        """
        with evaluating(self):
            return own_maps(self.image_features(image_B3HW), self.audio_features(spec_B1FT))

    def embed(self, image_B3HW: Tensor, spec_B1FT: Tensor) -> tuple[Tensor, Tensor]:
        """Return (visual_BC, audio_BC), both of unit length, for retrieval by cosine (SSL-TIE, sections 4.3 and 4.4).

        Computed in evaluation mode and without gradients.
        """
        with evaluating(self):
            return pooled_vectors(self.image_features(image_B3HW)), self.embed_audio(spec_B1FT)

    def embed_audio(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC of unit length, computed in evaluation mode."""
        with evaluating(self):
            return unit(self.audio_features(spec_B1FT))

    def image_features(self, image_B3HW: Tensor) -> Tensor:
        """Return image_BCHW, the image trunk's feature map: V of the paper's equation 1, not normalised, ≥ 0."""
        return self.image_trunk(image_B3HW)

    def audio_features(self, spec_B1FT: Tensor) -> Tensor:
        """Return audio_BC, the maximum over the audio map: A of the paper's equation 2, not normalised, ≥ 0."""
        if self.config.spec_pool > 1:
            spec_B1FT = F.avg_pool2d(spec_B1FT, self.config.spec_pool)
        return self.audio_trunk(spec_B1FT).amax(dim=(2, 3))


def lvs_logits(sim_BBHW: Tensor, config: LVSConfig) -> Tensor:
    """Return logits_BK: the positive, the B easy negatives, and the hard negative if enabled (released code).

    The positive of pair (i, i) and the easy negative of pair (i, j) are the mean cosine over the sounding positions,
    weighted by a sigmoid around epsilon_p (P of the paper, section 3.4, for every pair); OWN_COLUMN_FACTOR suppresses
    the easy negative of j = i. The hard negative is that of `hard_negatives`. All are divided by the logit temperature.
    The target class is 0.
    """
    sounding_BBHW = torch.sigmoid((sim_BBHW - config.epsilon_p) / config.mask_temperature)
    pooled_BB = weighted_mean(sim_BBHW, sounding_BBHW)
    own_column_BB = torch.eye(len(pooled_BB), dtype=torch.bool, device=pooled_BB.device)
    easy_BB = torch.where(own_column_BB, OWN_COLUMN_FACTOR * pooled_BB, pooled_BB)
    cosines = [pooled_BB.diagonal()[:, None] - config.margin, easy_BB]
    if config.hard_negatives:
        cosines.append(hard_negatives(sim_BBHW, config)[:, None])
    return torch.cat(cosines, dim=1) / config.logit_temperature


def hard_negatives(sim_BBHW: Tensor, config: LVSConfig) -> Tensor:
    """Return hard_B: the mean cosine over the background of map (i, i), weighted by a sigmoid (paper, section 3.4).

    The background is below epsilon_n with the tri-map, else below epsilon_p.
    """
    own_BHW = sim_BBHW.diagonal().movedim(-1, 0)
    epsilon = config.epsilon_n if config.tri_map else config.epsilon_p
    # 1 - sigmoid(x) written as sigmoid(-x): a map close to 1 everywhere would otherwise have weights of exactly 0.
    return weighted_mean(own_BHW, torch.sigmoid((epsilon - own_BHW) / config.mask_temperature))


def paper_terms(sim_BBHW: Tensor, config: LVSConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return positive_B, easy_B and hard_B of the paper's section 3.4: P_i and the two terms of N_i.

    easy_B is the unweighted mean of map (i, j) over its positions, summed over j ≠ i.
    """
    own_BHW = sim_BBHW.diagonal().movedim(-1, 0)
    positive_B = weighted_mean(own_BHW, torch.sigmoid((own_BHW - config.epsilon_p) / config.mask_temperature))
    mean_BB = sim_BBHW.mean(dim=(2, 3))
    easy_B = mean_BB.sum(dim=1) - mean_BB.diagonal()
    hard_B = hard_negatives(sim_BBHW, config) if config.hard_negatives else torch.zeros_like(positive_B)
    return positive_B - config.margin, easy_B, hard_B


def lvs_loss(
    image_features_BCHW: Tensor, audio_features_BC: Tensor, config: LVSConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of LVS, averaged over images.

    "released" is the cross entropy of `lvs_logits` against class 0; "paper" is −log(e^P / (e^P + e^N)) of `paper_terms`
    with N = easy + hard, without a temperature. image_features_BCHW and audio_features_BC are features of matching
    pairs and need not be normalised. Gradients flow through the masks too. Returns the scalar loss and, detached, the
    batch means of its cosines: `positive`, `easy` (over j ≠ i; 0 for a batch of one) and `hard`.
    """
    sim_BBHW = similarity_maps(image_features_BCHW, audio_features_BC)
    others = max(len(sim_BBHW) - 1, 1)
    if config.objective == "paper":
        positive_B, easy_B, hard_B = paper_terms(sim_BBHW, config)
        loss = F.softplus(easy_B + hard_B - positive_B).mean()
        terms = {"positive": positive_B, "easy": easy_B / others, "hard": hard_B}
        return loss, {name: value.detach().mean() for name, value in terms.items()}
    logits_BK = lvs_logits(sim_BBHW, config)
    loss = F.cross_entropy(logits_BK, torch.zeros(len(logits_BK), dtype=torch.long, device=logits_BK.device))
    cosine_BK = logits_BK.detach() * config.logit_temperature
    easy_BB = cosine_BK[:, 1 : 1 + len(sim_BBHW)]
    own_BB = torch.eye(len(easy_BB), dtype=torch.bool, device=easy_BB.device)
    terms = {
        "positive": cosine_BK[:, 0].mean(),
        "easy": easy_BB.masked_fill(own_BB, 0).sum() / (len(easy_BB) * others),
        "hard": cosine_BK[:, -1].mean() if config.hard_negatives else cosine_BK.new_zeros(()),
    }
    return loss, terms


def published_names(own_names: Iterable[str]) -> dict[str, str]:
    """Map our state keys to those of the published LVS checkpoints.

    These also hold tensors that no forward pass reads (classifier, optical-flow input). The audio trunk has an unused
    three-channel convolution `conv1` in addition to the one-channel convolution, hence `conv1_a`.
    """
    prefixes = {"image_trunk.": "imgnet.", "audio_trunk.conv1.": "audnet.conv1_a.", "audio_trunk.": "audnet."}

    def published(own: str) -> str:
        prefix = next(prefix for prefix in prefixes if own.startswith(prefix))
        return prefixes[prefix] + own.removeprefix(prefix)

    return {own: published(own) for own in own_names}
