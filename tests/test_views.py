"""Training views: their pixels against Pillow's, their colours in the shares that the papers name."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_frames import picture

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.data.augment import pixels
from avpipe.train.data.augment.views import TRAINING_VIEWS, appearance_view, crop_view, stored_view


@pytest.mark.parametrize(("view_of", "px"), [(crop_view, 246), (stored_view, 256)])
def test_a_view_is_a_crop_of_the_frame_or_its_mirror_image(view_of, px):
    frame = picture(455, 256)
    resized = np.asarray(frame.resize((int(px * 455 / 256), px), Image.Resampling.BICUBIC))
    windows = np.lib.stride_tricks.sliding_window_view(resized, (224, 224, 3))[:, :, 0]
    seen, flips = set(), 0
    for seed in range(8):
        view = view_of(np.array(frame), 224, random.Random(seed))
        plain, mirrored = (
            np.argwhere((windows[:, :, ::37, ::37] == some[::37, ::37]).all(axis=(2, 3, 4)))
            for some in (view, view[:, ::-1])
        )
        assert len(plain) + len(mirrored) == 1
        flips += len(mirrored)
        seen.add(tuple(np.concatenate([plain, mirrored])[0]))
    assert len(seen) > 4 and 0 < flips < 8


def test_a_stored_view_is_no_larger_than_the_frame_and_crops_reach_every_edge():
    with pytest.raises(AvpipeError, match="view=crop"):
        stored_view(np.array(picture(341, 256)), 257, random.Random(0))
    frame, rng = picture(64, 64), random.Random(0)
    resized = np.asarray(frame.resize((44, 44), Image.Resampling.BICUBIC))
    corners = {tuple(resized[y, x]) for y in (0, 4) for x in (0, 4)}
    views = [crop_view(np.array(frame), 40, rng) for _ in range(1000)]
    assert len(corners) == 4 and corners <= {tuple(view[0, x]) for view in views for x in (0, -1)}


@pytest.mark.parametrize("size", [(455, 256), (256, 341), (300, 260), (90, 64), (225, 224), (64, 47)])
@pytest.mark.parametrize("px", [224, 112, 40])
def test_a_resized_part_has_pillows_very_bytes(size, px):
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    scale = int(px * 1.1) / min(size)
    scaled = tuple(int(side * scale + 1e-9) for side in size)
    resized = np.asarray(frame.resize(scaled, Image.Resampling.BICUBIC))
    for top, left in ((0, 0), (scaled[1] - px, scaled[0] - px), ((scaled[1] - px) // 2, 1)):
        part = resized[top : top + px, left : left + px]
        for mirrored, expected in ((False, part), (True, part[:, ::-1])):
            view = pixels.resized_crop(np.array(frame), scaled[::-1], (top, left), px, mirrored)
            assert (view == expected).all()


@pytest.mark.parametrize("box", [(0, 0, 341, 256), (3, 10, 250, 250), (100, 0, 220, 140), (40, 20, 61, 44)])
@pytest.mark.parametrize("px", [224, 40])
def test_a_resized_box_has_pillows_very_bytes(box, px):
    frame = np.random.default_rng(0).integers(0, 256, (256, 341, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(frame).resize((px, px), Image.Resampling.BILINEAR, box=box))
    assert (pixels.resized_box(frame, box, px, mirrored=False) == expected).all()
    assert (pixels.resized_box(frame, box, px, mirrored=True) == expected[:, ::-1]).all()


def test_pillow_begins_with_the_other_side_of_some_boxes():
    frame, box = np.random.default_rng(0).integers(0, 256, (359, 277, 3), dtype=np.uint8), (40, 95, 90, 264)
    expected = np.asarray(Image.fromarray(frame).resize((224, 224), Image.Resampling.BILINEAR, box=box))
    assert np.abs(pixels.resized_box(frame, box, 224, False).astype(int) - expected).max() <= 1


def test_appearance_views_hold_the_shares_that_are_drawn(monkeypatch):
    boxes = []

    def noted(frame_HW3, box, px, mirrored):
        boxes.append((*box, mirrored))
        return np.zeros((px, px, 3), np.uint8)

    monkeypatch.setattr("avpipe.train.data.augment.views.pixels", SimpleNamespace(resized_box=noted))
    frame = np.zeros((90, 160, 3), np.uint8)
    for seed in range(2000):
        appearance_view(frame, 8, random.Random(seed))
    left, top, right, bottom, mirrored = np.array(boxes).T
    assert left.min() == 0 and top.min() == 0 and right.max() == 160 and bottom.max() == 90
    share, ratio = (right - left) * (bottom - top) / frame[..., 0].size, (right - left) / (bottom - top)
    assert share.min() < 0.32 and 0.74 < ratio.min() < 0.77 and 1.31 < ratio.max() < 1.36
    assert share[ratio < 0.8].max() < 0.6  # a high box cannot be large in a wide frame
    assert 0.45 < mirrored.mean() < 0.55


def test_single_augmentations_move_a_crop_as_they_are_called():
    frame, px = np.array(picture(80, 60)), 48
    crops = [TRAINING_VIEWS["crop-only"].pixels(frame, px, random.Random(seed)) for seed in range(40)]

    def pairs(name):
        return [(crop, TRAINING_VIEWS[name].pixels(frame, px, random.Random(s))) for s, crop in enumerate(crops)]

    flipped = [(view == crop[::-1]).all() for crop, view in pairs("vertical-flip")]
    assert all(f or (v == c).all() for f, (c, v) in zip(flipped, pairs("vertical-flip"), strict=True))
    assert 10 < sum(flipped) < 30
    turns = [next(k for k in range(4) if (np.rot90(crop, k) == view).all()) for crop, view in pairs("rotation")]
    assert set(turns) == {0, 1, 2, 3}
    for crop, view in pairs("translation"):
        shifts = [(x, y) for x in range(-10, 11) for y in range(-10, 11) if same_shifted(crop, view, x, y)]
        assert shifts


def test_views_draw_the_colours_that_they_are_named_after():
    def drawn(name):
        return np.array([TRAINING_VIEWS[name].colour(random.Random(seed)) for seed in range(3000)])

    jitter, grey, blur, all_three = (drawn(name) for name in ("jitter", "greyscale", "blur", "appearance"))
    for draws in (jitter, all_three):
        assert 0.77 < (draws[:, 0] >= 0).mean() < 0.83 and set(draws[:, 0]) == set(range(-1, 24))
        assert draws[:, 1:4].min() == pytest.approx(0.6, abs=0.01)
        assert draws[:, 1:4].max() == pytest.approx(1.4, abs=0.01)
    assert (jitter[:, 4:] == 0).all() and np.abs(all_three[:, 4]).max() == pytest.approx(0.1, abs=0.001)
    for draws in (grey, all_three):
        assert 0.17 < draws[:, 5].mean() < 0.23 and set(draws[:, 5]) == {0, 1}
    for draws in (blur, all_three):
        sigma = draws[:, 6][draws[:, 6] > 0]
        assert 0.46 < len(sigma) / 3000 < 0.54 and 0.1 <= sigma.min() < 0.12 and 1.98 < sigma.max() <= 2
    assert TRAINING_VIEWS["crop"].colour is None and TRAINING_VIEWS["crop-only"].colour is None


def same_shifted(crop, view, x, y):
    """Whether the view is the crop moved by (x, y) pixels, black where nothing was."""
    moved, (height, width) = np.zeros_like(crop), crop.shape[:2]
    moved[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = crop[
        max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)
    ]
    return (moved == view).all()
