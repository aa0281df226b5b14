"""The recipes by which the inputs and weights behind the parity files are rebuilt, and what their tests share.

The recipes are those of the parity folder's README, section 1: every array follows from a seed and a name.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_files import PARITY


def parity_files(stem: str) -> list:
    """The files `<stem>_s<seed>.npz`, ready for `parametrize`; one skipped case where there are none."""
    files = sorted(PARITY.glob(f"{stem}_s*.npz")) if PARITY else []
    if not files:
        reason = f"no {stem}_s*.npz: set AVPIPE_PARITY to the folder of parity files"
        return [pytest.param(None, id=stem, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(file, id=file.stem) for file in files]


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as archive:
        return dict(archive)


def from_json(value: np.ndarray):
    return json.loads(str(value))


def normal(seed: int, tag: str, shape: tuple[int, ...]) -> np.ndarray:
    """White noise, float32."""
    return np.random.default_rng([seed, zlib.crc32(tag.encode())]).standard_normal(shape, dtype=np.float32)


def field(seed: int, tag: str, shape: tuple[int, ...]) -> np.ndarray:
    """Noise at three scales over the last two axes, float32."""
    *lead, height, width = shape
    total = np.zeros(shape, dtype=np.float32)
    for block, amplitude in ((48, 1.0), (12, 0.7), (1, 0.3)):
        coarse = normal(seed, f"{tag}/{block}", (*lead, -(-height // block), -(-width // block)))
        fine = coarse.repeat(block, axis=-2).repeat(block, axis=-1)[..., :height, :width]
        total += np.float32(amplitude) * fine
    return total


def weights(state_spec: list) -> dict[str, torch.Tensor]:
    """Every tensor of a published state dict, from its `[name, shape, dtype]` list."""
    names = {name for name, _, _ in state_spec}
    state = {}
    for name, shape, dtype in state_spec:
        *owner, kind = name.split(".")
        is_norm = ".".join([*owner, "running_mean"]) in names
        if "int" in dtype:
            values = np.zeros(shape, dtype=dtype)
        elif owner and owner[-1] in ("a0", "b0"):
            values = np.full(shape, 1.0 if owner[-1] == "a0" else 0.5, dtype=np.float32)
        else:
            values = _drawn(name, kind, tuple(shape), is_norm)
        state[name] = torch.from_numpy(np.asarray(values))
    return state


def _drawn(name: str, kind: str, shape: tuple[int, ...], is_norm: bool) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if kind in ("weight", "running_var"):
        return np.abs(1 + np.float32(0.1) * noise)
    if kind == "bias" and is_norm:
        return np.float32(-0.6) + np.float32(0.3) * noise
    return np.float32(0.1) * noise


def assert_check(array: np.ndarray, check: np.ndarray) -> None:
    """The rebuilt input is, to the bit, the one that the published code saw."""
    expected = from_json(check)
    assert (list(array.shape), str(array.dtype)) == (expected["shape"], expected["dtype"])
    assert hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() == expected["sha256"]
