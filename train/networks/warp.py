"""SSL-TIE's geometric transform (scale, rotation, flip) of a batch of frames or maps.

Shapes: B batch, C channels, H × W pixels or positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Frames and maps of any size are rotated on a canvas of this side, as in the released code.
CANVAS_PX = 224
SMALL = 0.5


@dataclass(frozen=True, slots=True)
class Warp:
    """One transform of a batch."""

    angles: Tensor
    """Degrees, counter-clockwise, float (B,)."""
    scale: float
    """1 or .5, for the whole batch."""
    flip: bool
    """Whether to flip left and right, for the whole batch."""

    def __call__(self, image_BCHW: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Transform to (B, C, *size), by default int(H · scale) × int(W · scale); bilinear, padded with zeros.

        At scale .5 the content shrinks twice, as in the released code: within the canvas and with the canvas.
        Differentiable.
        """
        size = list(size or [int(side * self.scale) for side in image_BCHW.shape[-2:]])
        with torch.autocast(image_BCHW.device.type, enabled=False):  # a rotation in bfloat16 is off by whole pixels
            at_least_single = image_BCHW.to(torch.promote_types(image_BCHW.dtype, torch.float32))
            canvas = _resize(at_least_single, [CANVAS_PX, CANVAS_PX])
            grid = F.affine_grid(self._inverse().to(canvas), list(canvas.shape), align_corners=True)
            rotated = F.grid_sample(canvas, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
            result = _resize(rotated, size)
        return result.flip(-1) if self.flip else result

    def chunk(self, index: int, chunks: int) -> "Warp":
        """Return the transform of one of several equal chunks of the batch."""
        return Warp(angles=self.angles.chunk(chunks)[index], scale=self.scale, flip=self.flip)

    def _inverse(self) -> Tensor:
        """Return (B, 2, 3), the affine map from output to canvas coordinates, both from −1 to 1.

        The centre of rotation is pixel 112, half a pixel off the middle of the pixel grid. Single precision and the
        order of operations follow the library of the released code: rounding changes results by up to 1e-4 of a grey
        value.
        """
        angle_B = self.angles.float() * torch.pi / 180
        cosine_B, sine_B = torch.cos(angle_B) * self.scale, torch.sin(angle_B) * self.scale
        middle, zero_B, one_B = CANVAS_PX / 2, torch.zeros_like(angle_B), torch.ones_like(angle_B)
        rows = [
            torch.stack([cosine_B, sine_B, (1 - cosine_B) * middle - sine_B * middle], dim=1),
            torch.stack([-sine_B, cosine_B, sine_B * middle + (1 - cosine_B) * middle], dim=1),
            torch.stack([zero_B, zero_B, one_B], dim=1),
        ]
        pixel = 2 / (CANVAS_PX - 1)
        to_unit = torch.tensor([[pixel, 0, -1], [0, pixel, -1], [0, 0, 1]]).to(angle_B)[None]
        return torch.inverse(to_unit @ (torch.stack(rows, dim=1) @ torch.inverse(to_unit)))[:, :2]


def draw_warp(batch: int, max_angle: int, device: torch.device) -> Warp:
    """Draw a transform: scale .5 or 1 and flip or not, each with probability ½, and integer degrees per sample.

    It uses torch's CPU generator, so that a checkpoint of the generator's state is enough to continue with the same
    transforms.
    """
    small, flip = (torch.rand(2) < 0.5).tolist()
    angle_B = torch.randint(-max_angle, max_angle + 1, (batch,)).float()
    return Warp(angles=angle_B.to(device), scale=SMALL if small else 1.0, flip=flip)


def _resize(image_BCHW: Tensor, size: list[int]) -> Tensor:
    if list(image_BCHW.shape[-2:]) == size:
        return image_BCHW
    return F.interpolate(image_BCHW, size=size, mode="bilinear", align_corners=False)
