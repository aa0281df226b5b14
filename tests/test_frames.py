"""Views of a frame against Pillow done by hand; the published test-time tensors are test_parity's."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from avpipe.train.data.frames import IMAGENET_MEAN, IMAGENET_STD, TEST_VIEWS, decode_frame, normalise


def picture(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


@pytest.mark.parametrize("size", [(455, 256), (256, 455), (256, 256), (341, 256)])
@pytest.mark.parametrize("view", TEST_VIEWS.values(), ids=TEST_VIEWS)
def test_views_are_square_and_deterministic(view, size):
    frame = picture(*size)
    assert view(frame, 224).shape == (224, 224, 3) and view(frame, 224).dtype == np.uint8
    assert (view(frame, 224) == view(frame, 224)).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_gives_pillows_pixels_and_sees_damage_that_pillow_lets_pass(mode):
    buffer = io.BytesIO()
    picture(341, 256).convert(mode).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    assert (decode_frame(data) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
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
