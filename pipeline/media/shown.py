"""Decoded pictures as players show them: cropped, upright, with square pixels."""

import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation

from avpipe.pipeline.media.crop import NO_CROP, Crop, container_crop
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.survey import Clip

# Maximal ratio of the displayed sides: 256 by 4,096 pixels.
MAX_ASPECT = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How a stream's pictures are displayed, according to its container."""

    pixel_aspect: Fraction = Fraction(1)
    """Width of a pixel over its height."""
    crop: Crop = NO_CROP

    @classmethod
    def of(cls, clip: Clip) -> "Geometry":
        """Return the geometry of a clip's picture."""
        crop = container_crop(clip.path, clip.container.format.name, clip.video)
        return cls(pixel_aspect=clip.video.sample_aspect_ratio or Fraction(1), crop=crop)

    def displayed_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return (width, height) in pixels of the frame as displayed: square pixels, upright. At least 1 x 1."""
        shown_width, height = self._size(frame)
        width = max(1, round(shown_width * self.pixel_aspect))
        return (height, width) if _turn(frame)[0] else (width, height)

    def check(self, frame: av.VideoFrame) -> None:
        """Raise MediaError for a picture of an absurd aspect ratio."""
        width, height = self.displayed_size(frame)
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise MediaError("corrupt", f"a picture of {width}x{height} pixels is too large for a clip")

    def rgb(self, frame: av.VideoFrame, short_side: int) -> np.ndarray:
        """Return the frame as displayed, uint8 (H, W, 3) RGB, the short side `short_side` pixels (bicubic)."""
        width, height = self._size(frame)
        shown = width * self.pixel_aspect, height
        scale = short_side / min(shown)
        width, height = (max(short_side, round(side * scale)) for side in shown)
        scaled = self._cropped(frame).reformat(width, height, format="rgb24", interpolation=Interpolation.BICUBIC)
        rgb = scaled.to_ndarray()
        transposed, mirrored, upside_down = _turn(frame)
        if transposed:
            rgb = rgb.swapaxes(0, 1)
        return np.ascontiguousarray(rgb[:: -1 if upside_down else 1, :: -1 if mirrored else 1])

    def _size(self, frame: av.VideoFrame) -> tuple[int, int]:
        width = frame.width - self.crop.left - self.crop.right
        height = frame.height - self.crop.top - self.crop.bottom
        return (width, height) if width > 0 < height else (frame.width, frame.height)  # may change midway

    def _cropped(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Crop in RGB: odd crops would shift subsampled chroma."""
        width, height = self._size(frame)
        if (width, height) == (frame.width, frame.height):
            return frame
        rgb = frame.to_ndarray(format="rgb24")
        part = rgb[self.crop.top : self.crop.top + height, self.crop.left : self.crop.left + width]
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(part), format="rgb24")


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transpose, then flip horizontally, then flip vertically) for the frame's display matrix.

    The matrix maps (x, y) to (a x + c y, b x + d y), 16.16 fixed point, see libavutil/display.h. Other angles are
    rounded to quarter turns: cameras write no others.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x, y = (c, b) if transposed else (a, d)
    return transposed, x < 0, y < 0
