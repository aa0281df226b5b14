"""Training views of frames: crops, flips and rotations; `colour` adds changes of colour."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.data.augment import pixels
from avpipe.train.data.augment.colour import draw_colour
from avpipe.train.data.frames import short_side

# All four repositories resize the short side to 246 for a crop of 224; other sizes are in proportion.
RESIZE_FOR_CROP = 1.1


@dataclass(frozen=True, slots=True)
class View:
    """An augmentation in two steps: `pixels` per frame in threads, then `colour` per batch on the device."""

    pixels: Callable[[np.ndarray, int, random.Random], np.ndarray]
    """Map a uint8 frame (H, W, 3), px and the sample's random generator to uint8 (px, px, 3)."""
    colour: Callable[[random.Random], np.ndarray] | None = None
    """Draw the parameters of `data.augment.colour.recolour`; None for no changes of colour."""


def crop_view(frame_HW3: np.ndarray, px: int, rng: random.Random) -> np.ndarray:
    """Return uint8 (px, px, 3): bicubic resize to 1.1 px, random crop, flip with probability ½.

    The bytes equal those of Pillow's resize and crop. Source: LVS, EZ-VSL and SSPL data loaders.
    """
    return _random_crop(frame_HW3, px, rng, flips=True)


def stored_view(frame_HW3: np.ndarray, px: int, rng: random.Random) -> np.ndarray:
    """Return uint8 (px, px, 3): a random crop of the stored frame without a resize, flip with probability ½.

    This takes half the time of `crop_view`. A frame of 256 pixels is 1.14 times as large as a crop of 224.
    """
    if min(frame_HW3.shape[:2]) < px:
        raise AvpipeError(f"a stored frame is smaller than {px} pixels; use --set view=crop")
    top_left = _draw_corner(frame_HW3.shape[:2], px, rng)
    return pixels.crop(frame_HW3, top_left, px, rng.random() < 0.5)


def appearance_view(frame_HW3: np.ndarray, px: int, rng: random.Random) -> np.ndarray:
    """Return uint8 (px, px, 3): a random box of .3 to 1 of the area, resized (bilinear), flip with probability ½.

    The first step of SSL-TIE's appearance augmentation, which is MoCo v2's with other parameters (paper, section 3.2;
    released data loader); the second step changes the colours.
    """
    height, width = frame_HW3.shape[:2]
    return pixels.resized_box(frame_HW3, _draw_box((width, height), (0.3, 1.0), rng), px, rng.random() < 0.5)


def _random_crop(frame_HW3: np.ndarray, px: int, rng: random.Random, flips: bool) -> np.ndarray:
    height, width = frame_HW3.shape[:2]
    width, height = short_side(width, height, int(px * RESIZE_FOR_CROP))
    top_left = _draw_corner((height, width), px, rng)
    return pixels.resized_crop(frame_HW3, (height, width), top_left, px, flips and rng.random() < 0.5)


def _draw_corner(size: tuple[int, int], px: int, rng: random.Random) -> tuple[int, int]:
    """Draw (top, left) of a square of side px within (height, width)."""
    return _below(size[0] - px + 1, rng), _below(size[1] - px + 1, rng)


def _below(end: int, rng: random.Random) -> int:
    """Draw an integer from 0 to before `end`, reproducibly across versions of Python, unlike `randrange`."""
    return int(rng.random() * end)


def _draw_box(size: tuple[int, int], area: tuple[float, float], rng: random.Random) -> tuple[int, int, int, int]:
    """Draw (left, top, right, bottom) of a random fraction of the area and an aspect ratio of 3:4 to 4:3.

    If none of ten draws fits, return the largest centred box, as torchvision's RandomResizedCrop does.
    """
    width, height = size
    for _ in range(10):
        target = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = _below(width - w + 1, rng), _below(height - h + 1, rng)
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _single(change: Callable[[np.ndarray, random.Random], np.ndarray] = lambda crop, rng: crop, **colours) -> View:
    """Return the cropped view without a flip, plus one augmentation of SSPL's table S2."""

    def augmented(frame_HW3: np.ndarray, px: int, rng: random.Random) -> np.ndarray:
        return change(_random_crop(frame_HW3, px, rng, flips=False), rng)

    return View(augmented, (lambda rng: draw_colour(rng, **colours)) if colours else None)


def _vertical_flip(crop: np.ndarray, rng: random.Random) -> np.ndarray:
    return crop[::-1] if rng.random() < 0.5 else crop


def _translation(crop: np.ndarray, rng: random.Random) -> np.ndarray:
    frame = Image.fromarray(crop)
    x, y = (round(rng.uniform(-0.2, 0.2) * side) for side in frame.size)
    return np.asarray(frame.transform(frame.size, Image.Transform.AFFINE, (1, 0, -x, 0, 1, -y)))


TRAINING_VIEWS: dict[str, View] = {
    "crop": View(crop_view),
    "stored-crop": View(stored_view),
    "appearance": View(appearance_view, lambda rng: draw_colour(rng, jitter=(0.4, 0.1), grey=True, blur=True)),
    # SSPL's supplement, table S2: a single augmentation after the crop.
    "crop-only": _single(),
    "vertical-flip": _single(_vertical_flip),
    "translation": _single(_translation),
    "rotation": _single(lambda crop, rng: np.rot90(crop, _below(4, rng))),
    "greyscale": _single(grey=True),
    "jitter": _single(jitter=(0.4, 0.0)),
    "blur": _single(blur=True),
}
