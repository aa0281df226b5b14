"""Frames as the networks see them: the training view, the two test views, and the ImageNet scaling."""

import io
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

# Training resizes the short side to 246 for a crop of 224 (all four repositories), other sizes in proportion.
RESIZE_FOR_CROP = 1.1
TrainingView = Callable[[Image.Image, int, np.random.Generator], np.ndarray]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def open_frame(data: bytes) -> Image.Image:
    """Decode frame.jpg to an RGB image. Raises OSError for what is none."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def training_view(frame: Image.Image, px: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (px, px, 3): bicubic resize to 1.1 px, a random crop, a flip with probability ½.

    Source: LVS, EZ-VSL and SSPL data loaders.
    """
    view = np.asarray(_random_crop(frame, px, rng))
    return np.ascontiguousarray(view[:, ::-1] if rng.random() < 0.5 else view)


def appearance_view(frame: Image.Image, px: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (px, px, 3): SSL-TIE's appearance augmentation, MoCo v2's with its own numbers (paper, section 3.2).

    A resized crop of .3 to 1 of the area, colour jitter with probability .8, grey with .2, blur with ½, flip with ½.
    Source: SSL-TIE's released data loader.
    """
    frame = frame.resize((px, px), Image.Resampling.BILINEAR, box=_resized_crop(frame.size, (0.3, 1.0), rng))
    if rng.random() < 0.8:
        frame = _jitter(frame, 0.4, 0.1, rng)
    view = np.asarray(_maybe_blurred(_maybe_grey(frame, rng), rng))
    return np.ascontiguousarray(view[:, ::-1] if rng.random() < 0.5 else view)


def _random_crop(frame: Image.Image, px: int, rng: np.random.Generator) -> Image.Image:
    frame = _resize_short(frame, int(px * RESIZE_FOR_CROP))
    left, top = (int(rng.integers(side - px + 1)) for side in frame.size)
    return frame.crop((left, top, left + px, top + px))


def _maybe_grey(frame: Image.Image, rng: np.random.Generator) -> Image.Image:
    return frame.convert("L").convert("RGB") if rng.random() < 0.2 else frame


def _maybe_blurred(frame: Image.Image, rng: np.random.Generator) -> Image.Image:
    return frame.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0))) if rng.random() < 0.5 else frame


def _single(change: Callable[[Image.Image, np.random.Generator], Image.Image]) -> TrainingView:
    """The cropped view, not flipped, with one more augmentation of SSPL's table S2."""

    def view(frame: Image.Image, px: int, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(change(_random_crop(frame, px, rng), rng))

    return view


def _flip(frame: Image.Image, rng: np.random.Generator, how=Image.Transpose.FLIP_LEFT_RIGHT) -> Image.Image:
    return frame.transpose(how) if rng.random() < 0.5 else frame


def _translate(frame: Image.Image, rng: np.random.Generator) -> Image.Image:
    x, y = (round(rng.uniform(-0.2, 0.2) * side) for side in frame.size)
    return frame.transform(frame.size, Image.Transform.AFFINE, (1, 0, -x, 0, 1, -y))


TRAINING_VIEWS: dict[str, TrainingView] = {
    "crop": training_view,
    "appearance": appearance_view,
    # SSPL's supplement, table S2: each augmentation alone, behind the crop.
    "crop-only": _single(lambda frame, rng: frame),
    "vertical-flip": _single(partial(_flip, how=Image.Transpose.FLIP_TOP_BOTTOM)),
    "translation": _single(_translate),
    "rotation": _single(lambda frame, rng: frame.rotate(90 * int(rng.integers(4)))),
    "greyscale": _single(_maybe_grey),
    "jitter": _single(lambda frame, rng: _jitter(frame, 0.4, 0.0, rng) if rng.random() < 0.8 else frame),
    "blur": _single(_maybe_blurred),
}


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
    """uint8 (B, H, W, 3) to float32 image_B3HW with ImageNet's mean and standard deviation removed, on its device.

    Frames in several views, (B, V, H, W, 3), become image_BV3HW.
    """
    mean_3, std_3 = (torch.tensor(v, device=image_BHW3.device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    scaled = (image_BHW3.float() / 255 - mean_3) / std_3
    return scaled.movedim(-1, -3)  # channels last in memory, which convolutions read fastest


def _resized_crop(size: tuple[int, int], area: tuple[float, float], rng: np.random.Generator) -> tuple:
    """A box of a random share of the area and a side ratio of 3:4 to 4:3; the largest centred one if none fits."""
    width, height = size
    for _ in range(10):
        target = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _jitter(frame: Image.Image, strength: float, hue: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation by factors of 1 ± strength and hue by ± hue of the circle, in random order."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    turn = round(rng.uniform(-hue, hue) * 255)
    for number in rng.permutation(4):
        if number < 3:
            frame = enhancers[number](frame).enhance(factors[number])
        else:
            hue_channel, *others = frame.convert("HSV").split()
            turned = Image.fromarray(np.asarray(hue_channel) + np.uint8(turn % 256))
            frame = Image.merge("HSV", (turned, *others)).convert("RGB")
    return frame


def _resize_short(frame: Image.Image, side: int) -> Image.Image:
    width, height = frame.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    return frame.resize(size, Image.Resampling.BICUBIC)
