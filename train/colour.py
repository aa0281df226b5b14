"""Changes of colour and blur for a batch of frames, on its device, each frame by its own draws.

MoCo v2's augmentation, of which SSL-TIE (released data loader) and SSPL (supplement, table S2) take their parts: jitter
with probability .8, its four changes in random order, grey with .2, a Gaussian blur with ½. Legend: N frames.
"""

import itertools
import random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ORDERS = torch.tensor(list(itertools.permutations(range(4))))
JITTER_SHARE, GREY_SHARE, BLUR_SHARE = 0.8, 0.2, 0.5
SIGMA_PX = (0.1, 2.0)
# Pixels on each side that a blur reaches: three of the largest standard deviations.
REACH = 6
# Of red, green and blue in what is seen as light (ITU-R 601-2, as Pillow's conversion to grey).
LIGHT = (0.299, 0.587, 0.114)


def draw_colour(
    rng: random.Random, *, jitter: tuple[float, float] | None = None, grey: bool = False, blur: bool = False
) -> np.ndarray:
    """float32 (7,): what happens to one frame, for `recolour`.

    Number of an order in ORDERS (-1: no jitter), factors of brightness, contrast and saturation within 1 ± the first of
    `jitter`, a turn of the hue within ± the second, in circles; 1 for grey; standard deviation of the blur in pixels
    (0: none).
    """
    order, factors, turn = -1, (1.0, 1.0, 1.0), 0.0
    if jitter and rng.random() < JITTER_SHARE:
        strength, most = jitter
        order = int(rng.random() * len(ORDERS))
        factors = tuple(rng.uniform(1 - strength, 1 + strength) for _ in range(3))
        turn = rng.uniform(-most, most)
    is_grey = grey and rng.random() < GREY_SHARE
    sigma_px = rng.uniform(*SIGMA_PX) if blur and rng.random() < BLUR_SHARE else 0.0
    return np.array([order, *factors, turn, is_grey, sigma_px], np.float32)


def recolour(image_NHW3: Tensor, draws_N7: Tensor) -> Tensor:
    """float32 image_NHW3 in [0, 255] of a uint8 one, changed as `draw_colour` drew it.

    The draws lie in the host's memory: they tell which frames go which way, which a GPU would have to be asked for.
    """
    image_NHW3 = image_NHW3.float() / 255
    amounts_N7 = draws_N7.to(image_NHW3.device, non_blocking=True)
    order_N = draws_N7[:, 0].long()
    for turn in range(4):
        for number, change in enumerate(JITTER):
            rows = ((order_N >= 0) & (ORDERS[order_N, turn] == number)).nonzero()[:, 0].to(image_NHW3.device)
            if len(rows):
                amount = amounts_N7[rows, 1 + number, None, None, None]
                image_NHW3[rows] = change(image_NHW3[rows], amount).clamp_(0, 1)
    if len(rows := draws_N7[:, 5].nonzero()[:, 0].to(image_NHW3.device)):
        image_NHW3[rows] = _light(image_NHW3[rows]).expand(-1, -1, -1, 3)
    if len(rows := draws_N7[:, 6].nonzero()[:, 0].to(image_NHW3.device)):
        image_NHW3[rows] = _blurred(image_NHW3[rows], amounts_N7[rows, 6])
    return image_NHW3 * 255


def _light(image_NHW3: Tensor) -> Tensor:
    return (image_NHW3 * torch.tensor(LIGHT, device=image_NHW3.device)).sum(dim=3, keepdim=True)


def _brightness(image_NHW3: Tensor, factor: Tensor) -> Tensor:
    return image_NHW3 * factor


def _contrast(image_NHW3: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_light(image_NHW3).mean((1, 2, 3), keepdim=True), image_NHW3, factor)


def _saturation(image_NHW3: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_light(image_NHW3), image_NHW3, factor)


def _hue(image_NHW3: Tensor, turn: Tensor) -> Tensor:
    """The hue moved along its circle, value and saturation kept."""
    red, green, blue = image_NHW3.unbind(3)
    value, chroma = image_NHW3.amax(3), image_NHW3.amax(3) - image_NHW3.amin(3)
    divisor = chroma.clamp_min(1e-6)
    sixth = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sixth = torch.where(value == red, (green - blue) / divisor, sixth)
    place = (sixth[..., None] + 6 * turn + torch.tensor((5, 3, 1), device=turn.device)) % 6
    return value[..., None] - chroma[..., None] * torch.minimum(place, 4 - place).clamp(0, 1)


JITTER = (_brightness, _contrast, _saturation, _hue)


def _blurred(image_NHW3: Tensor, sigma_N: Tensor) -> Tensor:
    """Gaussian blur, the border repeated; each frame by its own kernel, as a group of one convolution."""
    count, height, width = image_NHW3.shape[:3]
    distance = torch.arange(-REACH, REACH + 1, device=sigma_N.device)
    kernel_NK = torch.exp(-0.5 * (distance / sigma_N[:, None]).square())
    kernel = (kernel_NK / kernel_NK.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)[:, None, None]
    planes = F.pad(image_NHW3.permute(0, 3, 1, 2).reshape(1, -1, height, width), (REACH,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel, groups=3 * count), kernel.transpose(2, 3), groups=3 * count)
    return planes.view(count, 3, height, width).permute(0, 2, 3, 1)
