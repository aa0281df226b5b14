"""Frames as the networks see them: the training view, the two test views, and the ImageNet scaling."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Training resizes the short side to 246 for a crop of 224 (all four repositories), other sizes in proportion.
RESIZE_FOR_CROP = 1.1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def open_frame(data: bytes) -> Image.Image:
    """Decode frame.jpg to an RGB image. Raises OSError for what is none."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def training_view(frame: Image.Image, px: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (px, px, 3): bicubic resize to 1.1 px, a random crop, a flip with probability ½.

    Source: LVS, EZ-VSL and SSPL data loaders.
    """
    frame = _resize_short(frame, int(px * RESIZE_FOR_CROP))
    left, top = (int(rng.integers(side - px + 1)) for side in frame.size)
    view = np.asarray(frame)[top : top + px, left : left + px]
    return np.ascontiguousarray(view[:, ::-1] if rng.random() < 0.5 else view)


def squashed_view(frame: Image.Image, px: int) -> np.ndarray:
    """uint8 (px, px, 3): the whole frame, bicubic, aspect given up; boxes stay true. Source: EZ-VSL's test code."""
    return np.asarray(frame.resize((px, px), Image.Resampling.BICUBIC))


def cropped_view(frame: Image.Image, px: int) -> np.ndarray:
    """uint8 (px, px, 3): short side px (bicubic), centre crop. Source: the test code of LVS, SSL-TIE and SSPL."""
    frame = _resize_short(frame, px)
    left, top = (round((side - px) / 2) for side in frame.size)
    return np.ascontiguousarray(np.asarray(frame)[top : top + px, left : left + px])


TEST_VIEWS = {"squash": squashed_view, "crop": cropped_view}


def normalise(image_BHW3: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float32 image_B3HW with ImageNet's mean and standard deviation removed, on its device."""
    mean_3, std_3 = (torch.tensor(v, device=image_BHW3.device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    scaled = (image_BHW3.float() / 255 - mean_3) / std_3
    return scaled.permute(0, 3, 1, 2)  # a channels-last tensor, which convolutions read fastest


def _resize_short(frame: Image.Image, side: int) -> Image.Image:
    width, height = frame.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    return frame.resize(size, Image.Resampling.BICUBIC)
