"""MarginNCE: without a margin InfoNCE, a smaller margin a smaller loss, gradients those of finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.train.methods.ez_vsl import EZVSLConfig, ez_vsl_loss
from avpipe.train.methods.lvs import LVSConfig, lvs_loss
from avpipe.train.methods.margin_nce import ANCHORS, MarginNCEConfig, margin_nce_loss, pair_scores
from avpipe.train.networks.similarity import similarity_maps

MARGINS = (0.2, 0.0, -0.1, -0.2, -0.3, -0.4)


def features(seed: int, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 6, 3, 3, generator=generator, dtype=torch.float64)
    return image, image.mean(dim=(2, 3)) + 0.3 * torch.randn(batch, 6, generator=generator, dtype=torch.float64)


def by_hand(image: torch.Tensor, audio: torch.Tensor, config: MarginNCEConfig) -> float:
    """The paper's equations 2, 3 and 5, a pair at a time; anchored on the image."""
    total = 0.0
    for i in range(len(image)):
        terms = []
        for j in range(len(audio)):
            cosines = [
                float(pixel @ audio[j] / (pixel.norm() * audio[j].norm())) for pixel in image[i].flatten(1).unbind(1)
            ]
            masks = [1 / (1 + math.exp(-(c - config.epsilon) / config.mask_temperature)) for c in cosines]
            score = sum(m * c for m, c in zip(masks, cosines, strict=True)) / sum(masks)
            terms.append(math.exp((score - config.margin * (i == j)) / config.temperature))
        total -= math.log(terms[i] / sum(terms))
    return total / len(image)


@pytest.mark.parametrize("margin", MARGINS)
def test_the_loss_is_the_formula(margin):
    image, audio = features(1)
    config = MarginNCEConfig(margin=margin)
    assert margin_nce_loss(image, audio, config)[0].item() == pytest.approx(by_hand(image, audio, config), rel=1e-9)


@given(st.integers(0, 10_000), st.sampled_from(ANCHORS), st.integers(2, 6))
@settings(deadline=None, max_examples=40)
def test_a_smaller_margin_is_a_smaller_loss(seed, anchor, batch):
    image, audio = features(seed, batch)
    configs = [MarginNCEConfig(margin=margin, anchor=anchor) for margin in MARGINS]
    losses = [margin_nce_loss(image, audio, config)[0].item() for config in configs]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1] > 0


def test_without_a_margin_it_is_info_nce_and_both_anchors_are_the_mean_of_each():
    image, audio = features(4)
    score_BB = pair_scores(similarity_maps(image, audio), MarginNCEConfig())
    expected = {
        anchor: -torch.log_softmax(logits_BB / 0.07, dim=1).diagonal().mean().item()
        for anchor, logits_BB in (("image", score_BB), ("audio", score_BB.T))
    }
    expected["both"] = (expected["image"] + expected["audio"]) / 2
    for anchor in ANCHORS:
        loss = margin_nce_loss(image, audio, MarginNCEConfig(margin=0.0, anchor=anchor))[0]
        assert loss.item() == pytest.approx(expected[anchor], rel=1e-12)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(("loss", "config"), [(lvs_loss, LVSConfig), (ez_vsl_loss, EZVSLConfig)])
def test_a_margin_inside_lvs_and_ez_vsl_moves_the_positive_alone(loss, config, margin):
    image, audio = features(3)
    (moved, parts), (plain, before) = loss(image, audio, config(margin=margin)), loss(image, audio, config())
    assert moved.isfinite() and (moved - plain) * margin >= 0
    assert parts["positive"].item() == pytest.approx(before["positive"].item() - (loss is lvs_loss) * margin, abs=1e-6)
    assert all(parts[name] == before[name] for name in parts.keys() - {"positive"})


@pytest.mark.parametrize("margin", [0.2, -0.2])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_gradients_are_those_of_finite_differences(anchor, margin):
    image, audio = (part.requires_grad_() for part in features(2, 3))
    config = MarginNCEConfig(anchor=anchor, margin=margin)
    assert torch.autograd.gradcheck(lambda *pair: margin_nce_loss(*pair, config)[0], (image, audio), rtol=1e-5)
