"""Compiled loops over pixels: crop, mirror, look-up, and Pillow's resize computed only for the region that is kept.

They release the interpreter's lock, so threads run them in parallel. Shapes: H, W of the stored frame; S side of a
square view; K taps of a filter.
"""

import numpy as np

from avpipe.train.data.compiled import compiled

# Pillow rounds its weights to this many fractional bits, and rounds to bytes after each of the two passes.
BITS = 22
_HALF, _BITS, _LOWEST, _HIGHEST = np.int32(1 << (BITS - 1)), np.int32(BITS), np.int32(0), np.int32(255)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)


def resized_crop(
    frame_HW3: np.ndarray, size: tuple[int, int], top_left: tuple[int, int], side: int, mirrored: bool
) -> np.ndarray:
    """Return uint8 (S, S, 3): the crop at `top_left` of the frame resized to `size` (height, width), bicubic.

    The bytes equal those of Pillow's `resize(size, BICUBIC)` and `crop`, but only the crop is computed. Rows are
    resized first, as in Pillow before 13, which starts with the columns of frames twice as high as wide.
    """
    height, width = frame_HW3.shape[:2]
    (top, left), cubic = top_left, True
    rows = taps(height, (0, height), size[0], cubic, (top, top + side))
    columns = taps(width, (0, width), size[1], cubic, (left, left + side))
    return _resampled(frame_HW3, rows, columns, mirrored)


def resized_box(frame_HW3: np.ndarray, box: tuple[int, int, int, int], side: int, mirrored: bool) -> np.ndarray:
    """Return uint8 (S, S, 3): the region `box` (left, top, right, bottom) of the frame, resized (bilinear).

    Equal to Pillow's `resize((S, S), BILINEAR, box=box)`; since version 13 Pillow starts with the columns for some
    boxes and then differs by 1 in some values.
    """
    (height, width), (left, top, right, bottom), cubic = frame_HW3.shape[:2], box, False
    rows = taps(height, (top, bottom), side, cubic, (0, side))
    columns = taps(width, (left, right), side, cubic, (0, side))
    return _resampled(frame_HW3, rows, columns, mirrored)


def _resampled(frame_HW3: np.ndarray, rows: tuple, columns: tuple, mirrored: bool) -> np.ndarray:
    height, width = frame_HW3.shape[:2]
    view_HW3 = np.empty((len(rows[0]), len(columns[0]), 3), np.uint8)
    _resize(frame_HW3.reshape(height, width * 3), *rows, *columns, mirrored, view_HW3.reshape(len(view_HW3), -1))
    return view_HW3


def crop(frame_HW3: np.ndarray, top_left: tuple[int, int], side: int, mirrored: bool) -> np.ndarray:
    """Return uint8 (S, S, 3): the crop of the frame at `top_left`, optionally mirrored."""
    top, left = top_left
    if not mirrored:
        return frame_HW3[top : top + side, left : left + side]  # a view; stacking into a batch copies it anyway
    view_SS3 = np.empty((side, side, 3), np.uint8)
    _mirror_rows(frame_HW3[top : top + side].reshape(side, -1), 3 * left, view_SS3.reshape(side, side * 3))
    return view_SS3


def look_up(image_N3: np.ndarray, table_3V: np.ndarray, out_N3: np.ndarray) -> None:
    """Write to `out_N3` the entry of `table_3V`, float32 (3, 256), for each channel and uint8 value."""
    _look_up(image_N3, table_3V, out_N3)


@compiled
def taps(size, span, new, cubic, kept):
    """Return (first source pixel of each output pixel, int32 weights (K, …) of it and the following ones), as Pillow.

    The range `span` (from, to) of `size` source pixels becomes `new` pixels; the result covers those in `kept` (from,
    to). Cubic with a = -0.5, else linear. Source: Pillow's Resample.c, `precompute_coeffs`, `normalize_coeffs_8bpc`.
    """
    scale = (span[1] - span[0]) / new
    stretch = max(scale, 1.0)
    reach = (2.0 if cubic else 1.0) * stretch
    centre = span[0] + (np.arange(kept[0], kept[1]) + 0.5) * scale
    low = np.array([max(int(c - reach + 0.5), 0) for c in centre])
    end = np.array([min(int(c + reach + 0.5), size) for c in centre])
    count = (end - low).max()
    first = np.minimum(low, size - count)
    weights = np.zeros((count, len(centre)), np.int32)
    line = np.empty(count)
    for i in range(len(centre)):
        total = 0.0
        for k in range(end[i] - low[i]):
            x = abs(low[i] + k - centre[i] + 0.5) * (1 / stretch)
            line[k] = _cubic(x) if cubic else max(1 - x, 0.0)
            total += line[k]
        for k in range(end[i] - low[i]):
            fixed = line[k] * (1 / total) * (1 << BITS)
            weights[low[i] + k - first[i], i] = int(fixed + (0.5 if fixed >= 0 else -0.5))
    return first, weights


@compiled
def _cubic(x):
    a = -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


@compiled
def _resize(frame, first_row, row_weights, first_column, column_weights, mirrored, out):
    """Resize rows of interleaved RGB. The inner loops run over contiguous memory so that they are vectorised."""
    side, length = len(first_column), out.shape[1]
    channel_weights = np.repeat(column_weights, 3).reshape(len(column_weights), length)
    start = first_row[0]
    between = np.empty((first_row[-1] + len(row_weights) - start, length), np.uint8)
    sums, line = np.empty(length, np.int32), np.empty(length, np.uint8)
    for y in range(len(between)):
        row = frame[start + y]
        sums[:] = _HALF
        x = 0
        while x < side:  # a run of output pixels whose sources are contiguous
            end = x + 1
            while end < side and first_column[end] == first_column[end - 1] + 1:
                end += 1
            at, size = 3 * first_column[x], 3 * (end - x)
            for k in range(len(column_weights)):
                pixels = row[at + 3 * k : at + 3 * k + size]
                _add_products(sums[3 * x : 3 * end], channel_weights[k, 3 * x : 3 * end], pixels)
            x = end
        if mirrored:
            _to_bytes(sums, line)
            _mirror(line, between[y])
        else:
            _to_bytes(sums, between[y])
    for y in range(len(first_row)):
        sums[:] = _HALF
        for k in range(len(row_weights)):
            _add_multiple(sums, row_weights[k, y], between[first_row[y] - start + k])
        _to_bytes(sums, out[y])


@compiled
def _add_products(sums, weights, pixels):
    for i in range(len(sums)):
        sums[i] += weights[i] * np.int32(pixels[i])


@compiled
def _add_multiple(sums, weight, pixels):
    for i in range(len(sums)):
        sums[i] += weight * np.int32(pixels[i])


@compiled
def _to_bytes(sums, out):
    for i in range(len(sums)):
        out[i] = np.uint8(min(max(sums[i] >> _BITS, _LOWEST), _HIGHEST))


@compiled
def _mirror(line, out):
    width = np.uint64(len(line) // 3)
    for x in range(width):  # unsigned, so that numba omits the check for negative indices: four times as fast
        here, there = _THREE * x, _THREE * (width - _ONE - x)
        out[there] = line[here]
        out[there + _ONE] = line[here + _ONE]
        out[there + _TWO] = line[here + _TWO]


@compiled
def _mirror_rows(rows, start, out):
    for y in range(len(out)):
        _mirror(rows[y, start : start + out.shape[1]], out[y])


@compiled
def _look_up(image, table, out):
    for i in range(len(image)):
        for channel in range(3):
            out[i, channel] = table[channel, image[i, channel]]
