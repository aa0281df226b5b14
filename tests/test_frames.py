"""Views of a frame against Pillow done by hand; the published test-time tensors are test_parity's."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import AvpipeError
from train import pixels
from train.frames import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TEST_VIEWS,
    TRAINING_VIEWS,
    decode_frame,
    normalise,
    open_frame,
    stored_view,
    training_view,
)


def picture(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


@pytest.mark.parametrize("size", [(455, 256), (256, 455), (256, 256), (341, 256)])
@pytest.mark.parametrize("view", TEST_VIEWS.values(), ids=TEST_VIEWS)
def test_views_are_square_and_deterministic(view, size):
    frame = picture(*size)
    assert view(frame, 224).shape == (224, 224, 3) and view(frame, 224).dtype == np.uint8
    assert (view(frame, 224) == view(frame, 224)).all()


def test_a_training_view_is_a_crop_of_the_resized_frame_or_its_mirror_image():
    frame = picture(455, 256)
    resized = np.asarray(frame.resize((int(246 * 455 / 256), 246), Image.Resampling.BICUBIC))
    windows = np.lib.stride_tricks.sliding_window_view(resized, (224, 224, 3))[:, :, 0]
    seen, flips = set(), 0
    for seed in range(8):
        view = training_view(frame, 224, np.random.default_rng(seed))
        plain = np.argwhere((windows[:, :, ::37, ::37] == view[::37, ::37]).all(axis=(2, 3, 4)))
        mirrored = np.argwhere((windows[:, :, ::37, ::37] == view[:, ::-1][::37, ::37]).all(axis=(2, 3, 4)))
        assert len(plain) + len(mirrored) == 1
        flips += len(mirrored)
        seen.add(tuple(np.concatenate([plain, mirrored])[0]))
    assert len(seen) > 4 and 0 < flips < 8


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


def test_a_stored_crop_is_a_crop_of_the_frame():
    frame = np.array(picture(341, 256))
    windows = np.lib.stride_tricks.sliding_window_view(frame, (224, 224, 3))[:, :, 0]
    for seed in range(6):
        view = stored_view(frame, 224, np.random.default_rng(seed))
        matches = [(windows[:, :, ::37, ::37] == v[::37, ::37]).all(axis=(2, 3, 4)) for v in (view, view[:, ::-1])]
        assert sum(int(match.sum()) for match in matches) == 1
    with pytest.raises(AvpipeError, match="view=crop"):
        stored_view(frame, 257, np.random.default_rng(0))


def test_decoding_gives_pillows_pixels_and_sees_damage_that_pillow_lets_pass():
    buffer = io.BytesIO()
    picture(341, 256).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    assert (decode_frame(data) == np.asarray(Image.open(io.BytesIO(data)))).all()
    spoilt = bytearray(data)
    spoilt[len(data) // 2 : len(data) // 2 + 2] = b"\xff\xd9"  # the end of the picture, too early
    Image.open(io.BytesIO(spoilt)).load()
    for bad in (bytes(spoilt), data[:-300], b""):
        with pytest.raises(OSError, match=r"."):
            decode_frame(bad)


def test_normalised_frames_are_those_of_the_formula():
    image_BHW3 = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image_BV3HW = normalise(image_BHW3[:, None])
    expected = (image_BHW3.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.equal(normalise(image_BHW3), expected.permute(0, 3, 1, 2)) and image_BV3HW.shape == (2, 1, 3, 5, 6)
    kept = normalise(image_BHW3)
    normalise(255 - image_BHW3)
    assert torch.equal(kept, expected.permute(0, 3, 1, 2))  # memory is used again only when nobody has it
    part = kept[0, 0]
    kept = None
    normalise(255 - image_BHW3)
    assert torch.equal(part, expected[0, :, :, 0])


def test_crops_reach_every_edge():
    frame = picture(64, 64)
    rng = np.random.default_rng(0)
    resized = np.asarray(frame.resize((44, 44), Image.Resampling.BICUBIC))
    corners = {tuple(resized[y, x]) for y in (0, 4) for x in (0, 4)}
    assert len(corners) == 4
    views = [training_view(frame, 40, rng) for _ in range(1000)]
    firsts = {tuple(view[0, 0]) for view in views} | {tuple(view[0, -1]) for view in views}
    assert corners <= firsts


def test_a_grey_jpeg_opens_as_rgb_and_a_broken_one_raises():
    buffer = io.BytesIO()
    picture(64, 48).convert("L").save(buffer, "JPEG")
    assert open_frame(buffer.getvalue()).mode == "RGB"
    with pytest.raises(OSError, match=r"."):
        open_frame(buffer.getvalue()[:100])


def test_single_augmentations_change_a_crop_as_they_are_called():
    frame, px = picture(80, 60), 48
    crops = [TRAINING_VIEWS["crop-only"](frame, px, np.random.default_rng(seed)) for seed in range(40)]

    def pairs(name):
        return [(crop, TRAINING_VIEWS[name](frame, px, np.random.default_rng(s))) for s, crop in enumerate(crops)]

    flipped = [(view == crop[::-1]).all() for crop, view in pairs("vertical-flip")]
    assert all(f or (v == c).all() for f, (c, v) in zip(flipped, pairs("vertical-flip"), strict=True))
    assert 10 < sum(flipped) < 30
    turns = [next(k for k in range(4) if (np.rot90(crop, k) == view).all()) for crop, view in pairs("rotation")]
    assert set(turns) == {0, 1, 2, 3}
    grey = [(view == view[..., :1]).all() for _, view in pairs("greyscale")]
    assert 2 <= sum(grey) <= 16
    blurred = [
        np.abs(np.diff(v.astype(int), axis=0)).mean() < np.abs(np.diff(c.astype(int), axis=0)).mean() - 0.1
        for c, v in pairs("blur")
    ]
    assert 8 < sum(blurred) < 32
    assert 24 <= sum((view != crop).any() for crop, view in pairs("jitter")) <= 39
    for crop, view in pairs("translation"):
        shifts = [(x, y) for x in range(-10, 11) for y in range(-10, 11) if same_shifted(crop, view, x, y)]
        assert shifts


def same_shifted(crop, view, x, y):
    """Whether the view is the crop moved by (x, y) pixels, black where nothing was."""
    moved, (height, width) = np.zeros_like(crop), crop.shape[:2]
    moved[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = crop[
        max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)
    ]
    return (moved == view).all()
