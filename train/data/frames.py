"""Decoding of frames, the two views used for testing, and ImageNet normalisation."""

from functools import cache

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from avpipe.train.data.augment import pixels
from avpipe.train.data.buffer_pool import BATCHES

# Limits for a frame in the shards, whose short side has 256 pixels: a hostile or damaged header could ask for
# gigabytes, as could a long strip once its short side is resized. 3840 x 2160 is allowed.
MAX_PIXELS, MAX_ASPECT = 1 << 23, 64
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def decode_frame(data: bytes | memoryview) -> np.ndarray:
    """Decode frame.jpg to uint8 (H, W, 3) RGB, the same pixels as Pillow's.

    Raises OSError for data that is damaged or not a JPEG; Pillow would accept most damage, as grey or shifted blocks.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > MAX_PIXELS or max(height, width) > MAX_ASPECT * min(height, width):
            raise OSError(f"{width}x{height} pixels: more than {MAX_PIXELS:,}, or too elongated")
        return simplejpeg.decode_jpeg(data)
    except (MemoryError, RuntimeError, ValueError) as error:
        raise OSError(str(error)) from None


def squashed_view(frame: Image.Image, px: int) -> np.ndarray:
    """Return uint8 (px, px, 3): full frame squashed (bicubic); relative boxes stay valid. Source: EZ-VSL tests."""
    return np.asarray(frame.resize((px, px), Image.Resampling.BICUBIC))


def cropped_view(frame: Image.Image, px: int) -> np.ndarray:
    """Return uint8 (px, px, 3): short side px (bicubic), centre crop. Source: test code of LVS, SSL-TIE and SSPL."""
    frame = _resize_short(frame, px)
    left, top = (round((side - px) / 2) for side in frame.size)
    return np.ascontiguousarray(np.asarray(frame)[top : top + px, left : left + px])


TEST_VIEWS = {"squash": squashed_view, "crop": cropped_view}


def visible_region(frame: Image.Image, view: str) -> tuple[float, float, float, float]:
    """Return (left, top, width, height), in pixels, of the region of a frame that a test view shows."""
    width, height = (min(frame.size),) * 2 if view == "crop" else frame.size
    return (frame.width - width) / 2, (frame.height - height) / 2, width, height


def normalise(image_BHW3: Tensor) -> Tensor:
    """Convert uint8 (B, H, W, 3) to float32 image_B3HW, normalised by ImageNet's mean and standard deviation.

    The device stays the same. Floats in [0, 255] are accepted too; several views, (B, V, H, W, 3), become image_BV3HW.
    """
    if image_BHW3.device.type == "cpu" and image_BHW3.dtype == torch.uint8:
        scaled = BATCHES.empty(tuple(image_BHW3.shape), np.float32)
        pixels.look_up(image_BHW3.contiguous().view(-1, 3).numpy(), _scaled_values(), scaled.view(-1, 3).numpy())
    else:
        scaled = _scaled(image_BHW3)
    return scaled.movedim(-1, -3)  # channels-last memory format, the fastest for convolutions


def _scaled(image_BHW3: Tensor) -> Tensor:
    mean_3, std_3 = (torch.tensor(v, device=image_BHW3.device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image_BHW3.float() / 255 - mean_3) / std_3


@cache
def _scaled_values() -> np.ndarray:
    """Return float32 (3, 256), the normalised value of each byte per channel; a look-up is 20 times faster."""
    return _scaled(torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, 3)).T.contiguous().numpy()


def _resize_short(frame: Image.Image, side: int) -> Image.Image:
    return frame.resize(short_side(*frame.size, side), Image.Resampling.BICUBIC)


def short_side(width: int, height: int, side: int) -> tuple[int, int]:
    """Return (width, height) after resizing the short side to `side`."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side
