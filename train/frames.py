"""Frames as the networks see them: the training view, the two test views, and the ImageNet scaling."""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from pipeline.errors import AvpipeError
from train import pixels
from train.memory import Memory

# Training resizes the short side to 246 for a crop of 224 (all four repositories), other sizes in proportion.
RESIZE_FOR_CROP = 1.1
TrainingView = Callable[[np.ndarray | Image.Image, int, np.random.Generator], np.ndarray]
# Of a frame in the shards; a damaged header could ask for gigabytes.
MOST_PIXELS = 1 << 25
# Of normalised batches: fresh pages for 77 MB would take longer than the scaling.
_MEMORY = Memory()
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def decode_frame(data: bytes | memoryview) -> np.ndarray:
    """uint8 (H, W, 3) RGB of frame.jpg, the pixels that Pillow gives. Raises OSError for what is none or is damaged.

    Pillow would let most damage pass, as grey or shifted blocks.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > MOST_PIXELS:
            raise OSError(f"{width}x{height} pixels")
        return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        raise OSError(str(error)) from None


def open_frame(data: bytes | memoryview) -> Image.Image:
    """Decode frame.jpg to an RGB image. Raises OSError for what is none or is damaged."""
    return Image.fromarray(decode_frame(data))


def training_view(frame: np.ndarray | Image.Image, px: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (px, px, 3): bicubic resize to 1.1 px, a random crop, a flip with probability ½.

    The bytes are those of Pillow's resize and crop. Source: LVS, EZ-VSL and SSPL data loaders.
    """
    return _random_crop(frame, px, rng, flips=True)


def stored_view(frame: np.ndarray | Image.Image, px: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (px, px, 3): a random crop of the frame as it is stored, a flip with probability ½.

    Half the work of `training_view`; a frame of 256 pixels is 1.14 times as large as the crop.
    """
    frame_HW3 = np.require(frame, np.uint8, "CW")
    if min(frame_HW3.shape[:2]) < px:
        raise AvpipeError(f"a stored frame is smaller than {px} pixels; use --set view=crop")
    top, left, flipped = _draw_crop(frame_HW3.shape[:2], px, rng, flips=True)
    return pixels.crop(frame_HW3, (top, left), px, flipped)


def appearance_view(frame: np.ndarray | Image.Image, px: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (px, px, 3): SSL-TIE's appearance augmentation, MoCo v2's with its own numbers (paper, section 3.2).

    A resized crop of .3 to 1 of the area, colour jitter with probability .8, grey with .2, blur with ½, flip with ½.
    Source: SSL-TIE's released data loader.
    """
    frame = Image.fromarray(np.asarray(frame))
    frame = frame.resize((px, px), Image.Resampling.BILINEAR, box=_resized_crop(frame.size, (0.3, 1.0), rng))
    if rng.random() < 0.8:
        frame = _jitter(frame, 0.4, 0.1, rng)
    view = np.asarray(_maybe_blurred(_maybe_grey(frame, rng), rng))
    return np.ascontiguousarray(view[:, ::-1] if rng.random() < 0.5 else view)


def _random_crop(frame: np.ndarray | Image.Image, px: int, rng: np.random.Generator, flips: bool) -> np.ndarray:
    frame_HW3 = np.require(frame, np.uint8, "CW")  # one kind of array: another one would be compiled for anew
    height, width = frame_HW3.shape[:2]
    width, height = _short_side(width, height, int(px * RESIZE_FOR_CROP))
    top, left, flipped = _draw_crop((height, width), px, rng, flips)
    return pixels.resized_crop(frame_HW3, (height, width), (top, left), px, flipped)


def _draw_crop(size: tuple[int, int], px: int, rng: np.random.Generator, flips: bool) -> tuple[int, int, bool]:
    """(top, left, whether to flip)."""
    left, top = (int(rng.integers(side - px + 1)) for side in reversed(size))
    return top, left, flips and rng.random() < 0.5


def _maybe_grey(frame: Image.Image, rng: np.random.Generator) -> Image.Image:
    return frame.convert("L").convert("RGB") if rng.random() < 0.2 else frame


def _maybe_blurred(frame: Image.Image, rng: np.random.Generator) -> Image.Image:
    return frame.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0))) if rng.random() < 0.5 else frame


def _single(change: Callable[[Image.Image, np.random.Generator], Image.Image]) -> TrainingView:
    """The cropped view, not flipped, with one more augmentation of SSPL's table S2."""

    def view(frame: np.ndarray | Image.Image, px: int, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(change(Image.fromarray(_random_crop(frame, px, rng, flips=False)), rng))

    return view


def _flip(frame: Image.Image, rng: np.random.Generator, how=Image.Transpose.FLIP_LEFT_RIGHT) -> Image.Image:
    return frame.transpose(how) if rng.random() < 0.5 else frame


def _translate(frame: Image.Image, rng: np.random.Generator) -> Image.Image:
    x, y = (round(rng.uniform(-0.2, 0.2) * side) for side in frame.size)
    return frame.transform(frame.size, Image.Transform.AFFINE, (1, 0, -x, 0, 1, -y))


TRAINING_VIEWS: dict[str, TrainingView] = {
    "crop": training_view,
    "stored-crop": stored_view,
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
    if image_BHW3.device.type == "cpu":
        scaled = _MEMORY.room(tuple(image_BHW3.shape), np.float32)
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
    return frame.resize(_short_side(*frame.size, side), Image.Resampling.BICUBIC)


def _short_side(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) after a resize of the short side to `side`."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side
