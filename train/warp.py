"""SSL-TIE's geometric transform, of frames and of maps alike: scale, rotation, flip, all of a batch at once.

Shapes: B batch, C channels, H × W pixels or positions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Frames and maps are turned on a canvas of this many pixels, whatever their own size (released code).
CANVAS_PX = 224
SMALL = 0.5


@dataclass(frozen=True, slots=True)
class Warp:
    """One transform of a batch."""

    angles: Tensor
    """Degrees, against the clock, float (B,)."""
    scale: float
    """1 or .5, for the whole batch."""
    flip: bool
    """Whether left and right change places, for the whole batch."""

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, int(H · scale), int(W · scale)); bilinear, zeros where nothing was, differentiable.

        At scale .5 the content shrinks twice, as in the released code: within the canvas, and with it.
        """
        size = [int(side * self.scale) for side in image_BCHW.shape[-2:]]
        canvas = _resize(image_BCHW.float(), [CANVAS_PX, CANVAS_PX])
        grid = F.affine_grid(self._inverse().to(canvas), list(canvas.shape), align_corners=True)
        turned = F.grid_sample(canvas, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        result = _resize(turned, size)
        return result.flip(-1) if self.flip else result

    def _inverse(self) -> Tensor:
        """(B, 2, 3): where on the canvas each place of the result comes from, in coordinates from −1 to 1.

        The turn is around pixel 112, which lies half a pixel off the middle of the pixel grid.
        """
        angle_B = torch.deg2rad(self.angles.double())
        cosine_B, sine_B = torch.cos(angle_B) / self.scale, torch.sin(angle_B) / self.scale
        centre = CANVAS_PX / 2 / ((CANVAS_PX - 1) / 2) - 1
        matrix = torch.stack([cosine_B, -sine_B, sine_B, cosine_B], dim=1).view(-1, 2, 2)
        centre_2 = torch.full((2, 1), centre, dtype=torch.float64, device=angle_B.device)
        return torch.cat([matrix, centre_2 - matrix @ centre_2], dim=2)


def draw_warp(batch: int, max_angle: int, device: torch.device) -> Warp:
    """A transform from torch's generator: scale 1 or .5 and a flip, each with probability ½, whole degrees for each.

    The generator is the CPU's, so that a checkpoint of its state is enough to go on with the same transforms.
    """
    small, flip = (torch.rand(2) < 0.5).tolist()
    angle_B = torch.randint(-max_angle, max_angle + 1, (batch,)).float()
    return Warp(angles=angle_B.to(device), scale=SMALL if small else 1.0, flip=flip)


def _resize(image_BCHW: Tensor, size: list[int]) -> Tensor:
    if list(image_BCHW.shape[-2:]) == size:
        return image_BCHW
    return F.interpolate(image_BCHW, size=size, mode="bilinear", align_corners=False)
