"""Views of a frame against the published test-time tensors and Pillow done by hand."""

import io

import numpy as np
import pytest
import torch
from parity_recipes import load, parity_files
from PIL import Image

from train.frames import TEST_VIEWS, cropped_view, normalise, open_frame, squashed_view, training_view


def picture(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


@pytest.mark.parametrize("file", parity_files("image_preproc"))
@pytest.mark.parametrize(("name", "view"), [("lvs", cropped_view), ("ez", squashed_view)])
def test_test_views_agree_with_the_published_ones(file, name, view):
    golden = load(file)
    ours = view(Image.fromarray(golden["image_u8"]), 224)
    ours_3HW = normalise(torch.tensor(ours)[None])[0].numpy()
    np.testing.assert_allclose(ours_3HW[1], golden[f"{name}_g"], atol=1e-6)
    np.testing.assert_allclose(ours_3HW[:, 100], golden[f"{name}_row100"], atol=1e-6)
    np.testing.assert_allclose(ours_3HW.mean(axis=(1, 2), dtype=float), golden[f"{name}_mean"], atol=1e-6)


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
