"""Frames decoded, the two views of them that networks are tested on, and the ImageNet scaling."""

from functools import cache

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from avpipe.train.data.augment import pixels
from avpipe.train.data.buffer_pool import BATCHES

# Of a frame in the shards, whose short side has 256: a hostile or damaged header could ask for gigabytes, and a long
# strip would be one once its short side is enlarged. 3840 x 2160 fits.
MAX_PIXELS, MAX_ASPECT = 1 << 23, 64
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def decode_frame(data: bytes | memoryview) -> np.ndarray:
    """uint8 (H, W, 3) RGB of frame.jpg, the pixels that Pillow gives. Raises OSError for what is none or is damaged.

    Pillow would let most damage pass, as grey or shifted blocks.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > MAX_PIXELS or max(height, width) > MAX_ASPECT * min(height, width):
            raise OSError(f"{width}x{height} pixels, more than the {MAX_PIXELS:,} of a frame, or too long a strip")
        return simplejpeg.decode_jpeg(data)
    except (MemoryError, RuntimeError, ValueError) as error:
        raise OSError(str(error)) from None


def squashed_view(frame: Image.Image, px: int) -> np.ndarray:
    """uint8 (px, px, 3): the whole frame, bicubic, aspect given up; boxes stay true. Source: EZ-VSL's test code."""
    return np.asarray(frame.resize((px, px), Image.Resampling.BICUBIC))


def cropped_view(frame: Image.Image, px: int) -> np.ndarray:
    """uint8 (px, px, 3): short side px (bicubic), centre crop. Source: the test code of LVS, SSL-TIE and SSPL."""
    frame = _resize_short(frame, px)
    left, top = (round((side - px) / 2) for side in frame.size)
    return np.ascontiguousarray(np.asarray(frame)[top : top + px, left : left + px])


TEST_VIEWS = {"squash": squashed_view, "crop": cropped_view}


def visible_region(frame: Image.Image, view: str) -> tuple[float, float, float, float]:
    """(left, top, width, height) in pixels of the part of a frame that a test view shows."""
    width, height = (min(frame.size),) * 2 if view == "crop" else frame.size
    return (frame.width - width) / 2, (frame.height - height) / 2, width, height


def normalise(image_BHW3: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float32 image_B3HW with ImageNet's mean and standard deviation removed, on its device.

    Floats in [0, 255] do, too; frames in several views, (B, V, H, W, 3), become image_BV3HW.
    """
    if image_BHW3.device.type == "cpu" and image_BHW3.dtype == torch.uint8:
        scaled = BATCHES.empty(tuple(image_BHW3.shape), np.float32)
        pixels.look_up(image_BHW3.contiguous().view(-1, 3).numpy(), _scaled_values(), scaled.view(-1, 3).numpy())
    else:
        scaled = _scaled(image_BHW3)
    return scaled.movedim(-1, -3)  # channels last in memory, which convolutions read fastest


def _scaled(image_BHW3: Tensor) -> Tensor:
    mean_3, std_3 = (torch.tensor(v, device=image_BHW3.device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image_BHW3.float() / 255 - mean_3) / std_3


@cache
def _scaled_values() -> np.ndarray:
    """float32 (3, 256): what each byte of each channel becomes; twenty times as fast as to compute it each time."""
    return _scaled(torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, 3)).T.contiguous().numpy()


def _resize_short(frame: Image.Image, side: int) -> Image.Image:
    return frame.resize(short_side(*frame.size, side), Image.Resampling.BICUBIC)


def short_side(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) after a resize of the short side to `side`."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side
