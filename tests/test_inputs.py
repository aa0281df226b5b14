"""What networks read: changes of colour against Pillow and SciPy, mixed sounds against NumPy, masks by brute force."""

import colorsys
import contextlib
import random

import numpy as np
import pytest
import torch
from PIL import ImageEnhance
from scipy.ndimage import gaussian_filter
from test_frames import picture

from avpipe.pipeline.features.specs import SPECS
from avpipe.train.data.augment.colour import ORDERS, recolour
from avpipe.train.data.frames import normalise
from avpipe.train.data.inputs import Inputs, masked
from avpipe.train.data.mixing import Mixing
from avpipe.train.data.training_samples import TrainingSamples, draw_mask

pytest_plugins = ["train_fixtures"]
UNCHANGED = (-1, 1, 1, 1, 0, 0, 0)
CPU = torch.device("cpu")


def frames(count):
    return torch.from_numpy(np.stack([np.array(picture(40, 30, seed=seed)) for seed in range(count)]))


def recoloured(image_HW3, draws):
    return recolour(torch.from_numpy(np.array(image_HW3))[None], torch.tensor([draws]).float())[0].numpy()


@pytest.mark.parametrize(
    ("number", "enhancer"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.37])
def test_jitter_is_pillows(number, enhancer, factor):
    frame, factors = picture(60, 40), [1.0, 1.0, 1.0]
    factors[number] = factor
    expected = np.asarray(enhancer(frame).enhance(factor)).astype(float)
    assert np.abs(recoloured(frame, (5, *factors, 0, 0, 0)) - expected).max() <= 1.5


@pytest.mark.parametrize("turn", [-0.1, 0.04, 0.5, 1.0])
def test_hues_turn_on_their_circle(turn):
    frame = picture(20, 30)
    colours = [colorsys.rgb_to_hsv(*colour) for colour in np.asarray(frame).reshape(-1, 3) / 255]
    expected = [colorsys.hsv_to_rgb((hue + turn) % 1, *others) for hue, *others in colours]
    found = recoloured(frame, (0, 1, 1, 1, turn, 0, 0))
    assert np.abs(found - 255 * np.reshape(expected, found.shape)).max() < 1e-2


def test_changes_come_in_the_order_that_is_drawn():
    frame, factors = np.asarray(picture(60, 40)).astype(float) / 255, (1.4, 0.6, 0.7)
    light = np.array([0.299, 0.587, 0.114])
    changes = [
        lambda x: x * factors[0],
        lambda x: factors[1] * x + (1 - factors[1]) * (x @ light).mean(),
        lambda x: factors[2] * x + (1 - factors[2]) * (x @ light)[..., None],
        lambda x: x,
    ]
    seen = []
    for number, order in enumerate(ORDERS.tolist()):
        expected = frame
        for place in order:
            expected = changes[place](expected).clip(0, 1)
        seen.append(recoloured(picture(60, 40), (number, *factors, 0, 0, 0)))
        assert np.abs(seen[-1] - 255 * expected).max() < 1e-2
    assert max(np.abs(seen[0] - other).max() for other in seen) > 5


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_scipys(sigma):
    frame = np.asarray(picture(60, 40)).astype(np.float64)
    expected = gaussian_filter(frame, (sigma, sigma, 0), mode="nearest", radius=(6, 6, 0))
    assert np.abs(recoloured(frame.astype(np.uint8), (-1, 1, 1, 1, 0, 0, sigma)) - expected).max() < 1e-2


def test_each_frame_of_a_batch_goes_its_own_way():
    image, rng = frames(24), np.random.default_rng(0)
    draws = np.stack([np.array(UNCHANGED, np.float32)] * 24)
    draws[2:, 0], draws[2:, 1:4] = rng.integers(-1, 24, 22), rng.uniform(0.6, 1.4, (22, 3))
    draws[2:, 4], draws[2:, 5] = rng.uniform(-0.1, 0.1, 22), rng.random(22) < 0.3
    draws[2:, 6] = rng.uniform(0.1, 2, 22) * (rng.random(22) < 0.5)
    together = recolour(image, torch.from_numpy(draws))
    assert (together[:2] == image[:2]).all()
    for number in range(24):
        alone = recolour(image[number : number + 1], torch.from_numpy(draws[number : number + 1]))
        assert torch.allclose(together[number], alone[0], atol=1e-3)
    grey = together[draws[:, 5] == 1]
    assert len(grey) > 3 and torch.allclose(grey, grey[..., :1].expand_as(grey), atol=1e-3)


def test_views_of_a_frame_are_coloured_apart_and_scaled(shards):
    given = {"shards": shards, "feature": "logspec", "image_px": 32, "seed": 0, "views": 2}
    samples = TrainingSamples(view="appearance", **given)
    batch = {name: torch.from_numpy(np.array(part))[None] for name, part in samples[0, 0].items()}
    assert batch["image"].shape == (1, 2, 32, 32, 3) and batch["colour"].shape == (1, 2, 7)
    image, spec = Inputs(CPU, "logspec")(batch)
    assert image.shape == (1, 2, 3, 32, 32) and spec.shape == (1, 1, 257, 200) and spec.dtype == torch.float32
    for view in range(2):
        expected = normalise(recolour(batch["image"][0, view][None], batch["colour"][0, view][None]))
        assert torch.allclose(image[0, view], expected[0], atol=1e-5)
    colour, again, other = (samples[epoch, 0]["colour"] for epoch in (0, 0, 1))
    assert (colour == again).all() and (colour != other).any()


def test_mixed_sounds_are_blended_and_the_others_stay():
    spec, rng = SPECS["logspec"], np.random.default_rng(0)
    sounds = rng.integers(-(2**15), 2**15, (3, 2, spec.samples)).astype(np.int16)
    stored = rng.standard_normal((3, 1, *spec.shape)).astype(np.float16)
    parts = {"image": frames(3), "spec": stored, "sounds": sounds, "weight": np.array([0.25, 0, 0.65], np.float32)}
    _, found = Inputs(CPU, "logspec")({name: torch.as_tensor(part) for name, part in parts.items()})
    for number, weight in ((0, 0.25), (2, 0.65)):
        own, other = sounds[number] / 32768
        expected = spec.compute(((1 - weight) * own + weight * other).astype(np.float32))
        assert np.abs(found[number, 0].numpy() - expected).max() < 1e-4
    assert (found[1].numpy() == stored[1]).all()
    theirs = torch.rand(2, 1, 3, 4).half()  # a feature that avpipe cannot make
    assert torch.equal(Inputs(CPU, "theirs")({"image": frames(2), "spec": theirs})[1], theirs.float())


def test_masks_are_stretches_at_the_lowest_value():
    feature = torch.rand((60, 1, 257, 670), generator=torch.Generator().manual_seed(0)) + 1
    mask = torch.from_numpy(np.stack([draw_mask((1, 257, 670), random.Random(seed)) for seed in range(60)]))
    shares = []
    for before, after, drawn in zip(feature[:, 0], masked(feature, mask)[:, 0], mask.tolist(), strict=True):
        hidden = np.zeros((257, 670), bool)
        hidden[:, drawn[0] : drawn[0] + drawn[1]] = True
        hidden[drawn[2] : drawn[2] + drawn[3]] = True
        assert drawn[1] < 180 and drawn[3] < 35 and drawn[0] + drawn[1] <= 670 and drawn[2] + drawn[3] <= 257
        assert (after.numpy() == np.where(hidden, before.min(), before)).all()
        shares.append(bool(hidden.any()))
    assert 0.65 < np.mean(shares) < 0.95


def test_nothing_mixes_the_devices(shards, monkeypatch):
    """Meta tensors hold no numbers, but they refuse to meet others, and to be asked, as a GPU's would have to wait."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    mixing = Mixing(neighbours=np.roll(np.arange(16), 1).astype(np.int32), weight=0.5, share=0.5)
    samples = TrainingSamples(
        shards=shards, feature="logspec", image_px=32, seed=0, view="appearance", views=2, masking=True, mixing=mixing
    )
    read = [samples[0, number] for number in range(8)]
    batch = {name: torch.from_numpy(np.stack([sample[name] for sample in read])) for name in read[0]}
    assert (batch["weight"] > 0).any() and (batch["colour"][..., [0, 5, 6]] > 0).flatten(0, 1).any(dim=0).all()
    inputs = Inputs(torch.device("meta"), "logspec")
    image, spec = inputs(batch)
    assert image.is_meta and image.shape == (8, 2, 3, 32, 32) and spec.is_meta and spec.shape == (8, 1, 257, 200)
    assert {name for name, part in inputs.to_device(batch).items() if not part.is_meta} == {"colour", "weight"}
