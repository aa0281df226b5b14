"""Colour jitter, greyscale and blur for a batch of frames, on its device, with separate parameters per frame.

MoCo v2's augmentation, of which SSL-TIE (released data loader) and SSPL (supplement, table S2) each use a subset:
jitter with probability .8, its four changes in random order, greyscale with .2, Gaussian blur with ½. Shapes: N frames.
"""

import itertools
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ORDERS = torch.tensor(list(itertools.permutations(range(4))))
JITTER_SHARE, GREY_SHARE, BLUR_SHARE = 0.8, 0.2, 0.5
SIGMA_PX = (0.1, 2.0)
# Radius of the blur kernel in pixels: three times the largest standard deviation.
REACH = 6
# Weights of red, green and blue in luma (ITU-R 601-2, as in Pillow's conversion to grey).
LUMA = (0.299, 0.587, 0.114)


def draw_colour(
    rng: random.Random, *, jitter: tuple[float, float] | None = None, grey: bool = False, blur: bool = False
) -> np.ndarray:
    """Draw float32 (7,), the parameters of `recolour` for one frame.

    They are: index of an order in ORDERS (-1: no jitter); factors of brightness, contrast and saturation within 1 ± the
    first of `jitter`; a shift of the hue within ± the second, in full turns; 1 for greyscale; standard deviation of the
    blur in pixels (0: none).
    """
    order, factors, turn = -1, (1.0, 1.0, 1.0), 0.0
    if jitter and rng.random() < JITTER_SHARE:
        strength, max_turn = jitter
        order = int(rng.random() * len(ORDERS))
        factors = tuple(rng.uniform(1 - strength, 1 + strength) for _ in range(3))
        turn = rng.uniform(-max_turn, max_turn)
    is_grey = grey and rng.random() < GREY_SHARE
    sigma_px = rng.uniform(*SIGMA_PX) if blur and rng.random() < BLUR_SHARE else 0.0
    return np.array([order, *factors, turn, is_grey, sigma_px], np.float32)


def recolour(image_NHW3: Tensor, draws_N7: Tensor) -> Tensor:
    """Apply the changes drawn by `draw_colour`: uint8 image_NHW3 to float32 image_NHW3 in [0, 255].

    The draws must be in host memory: they decide which frames are changed, and reading them from a GPU would stall it.
    """
    image_N3HW = image_NHW3.permute(0, 3, 1, 2).contiguous().float() / 255
    amounts_N7 = draws_N7.to(image_N3HW.device, non_blocking=True)
    order_N = draws_N7[:, 0].long()
    for turn in range(4):
        for index, change in enumerate(JITTER):
            _apply(change, image_N3HW, amounts_N7[:, 1 + index], (order_N >= 0) & (ORDERS[order_N, turn] == index))
    _apply(_grey, image_N3HW, amounts_N7[:, 5], draws_N7[:, 5] > 0)
    _apply(_blur, image_N3HW, amounts_N7[:, 6], draws_N7[:, 6] > 0)
    return (image_N3HW * 255).permute(0, 2, 3, 1).contiguous()


def _apply(change: Callable[[Tensor, Tensor], Tensor], image_N3HW: Tensor, amount_N: Tensor, which_N: Tensor) -> None:
    """Change some of the frames in place, each by its own amount."""
    indices = which_N.nonzero()[:, 0].to(image_N3HW.device, non_blocking=True)
    if len(indices):
        image_N3HW[indices] = change(image_N3HW[indices], amount_N[indices, None, None, None]).clamp_(0, 1)


def _luma(image_N3HW: Tensor) -> Tensor:
    red, green, blue = image_N3HW.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _grey(image_N3HW: Tensor, _: Tensor) -> Tensor:
    return _luma(image_N3HW).repeat(1, 3, 1, 1)


def _brightness(image_N3HW: Tensor, factor: Tensor) -> Tensor:
    return image_N3HW * factor


def _contrast(image_N3HW: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(image_N3HW).mean((1, 2, 3), keepdim=True), image_N3HW, factor)


def _saturation(image_N3HW: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(image_N3HW), image_N3HW, factor)


def _hue(image_N3HW: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue; value and saturation stay the same."""
    red, green, blue = image_N3HW.split(1, dim=1)
    value = image_N3HW.amax(1, keepdim=True)
    chroma = value - image_N3HW.amin(1, keepdim=True)
    sixth_chroma = torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sixth_chroma = torch.where(value == red, green - blue, sixth_chroma)
    offset = 6 * turn + torch.tensor((5, 3, 1), device=turn.device)[:, None, None]
    sector = sixth_chroma / chroma.clamp_min(1e-6) + offset
    sector = sector - 6 * torch.floor(sector / 6)  # in [0, 6); the operator % is slower
    return value - chroma * torch.minimum(sector, 4 - sector).clamp_(0, 1)


JITTER = (_brightness, _contrast, _saturation, _hue)


def _blur(image_N3HW: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with replicated borders; each frame has its own kernel, as a group of one convolution."""
    count, _, height, width = image_N3HW.shape
    distance = torch.arange(-REACH, REACH + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (distance / sigma).square())
    kernel = (kernel / kernel.sum(dim=3, keepdim=True)).repeat_interleave(3, dim=0)
    planes = F.pad(image_N3HW.view(1, -1, height, width), (REACH,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel, groups=3 * count), kernel.transpose(2, 3), groups=3 * count)
    return planes.view(count, 3, height, width)
