"""Published weights, read from a given file or folder or from torch's cache, where they are downloaded on first use."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.core.safe_load import read_saved


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A published file of weights; its name ends with the first hexadecimal digits of its SHA-256."""

    what: str
    url: str

    @property
    def file_name(self) -> str:
        """The name of the file in torch's cache and in a folder of weights."""
        return self.url.rpartition("/")[2]


RESNET18 = Published(
    what="the ImageNet weights of ResNet-18", url="https://download.pytorch.org/models/resnet18-f37072fd.pth"
)
VGG16 = Published(what="the ImageNet weights of VGG-16", url="https://download.pytorch.org/models/vgg16-397923af.pth")
VGGISH = Published(
    what="the weights of VGGish",
    url="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
)


def load_published(published: Published, weights: str | Path | None) -> dict[str, Tensor]:
    """Return the state dictionary of a published file, on the CPU.

    `weights` is the file itself or a folder that holds it under its published name; without it torch's cache
    (`$TORCH_HOME/hub/checkpoints`) is used, and filled from the file's URL if needed. Only tensors are unpickled.
    Raises AvpipeError, saying what to do, if the file is not available or is not a state dictionary.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / published.file_name
    file = Path(weights) if weights else cached
    if file.is_dir():
        file = file / published.file_name
    try:
        if weights or cached.exists():
            return read_saved(file)
        return torch.hub.load_state_dict_from_url(published.url, map_location="cpu", check_hash=True, weights_only=True)
    except (AvpipeError, OSError, EOFError, RuntimeError, pickle.UnpicklingError, HTTPException) as error:
        reason = str(error) if isinstance(error, AvpipeError) else type(error).__name__
        raise AvpipeError(
            f"{published.what} are missing: {file} could not be read or downloaded ({reason}); download "
            f"{published.url} to {cached}, or give the file (or its folder) with --weights; to train "
            "without these weights, use --init random"
        ) from error


def mismatch(published: Published, file: str | Path | None) -> AvpipeError:
    """Return the error for a file that holds something else."""
    return AvpipeError(f"{file or published.file_name} does not hold {published.what}; download {published.url}")


def fill(module: torch.nn.Module, state: dict[str, Tensor], published: Published, weights: str | Path | None) -> None:
    """Load `state` into `module`. Raises AvpipeError if names or shapes differ."""
    try:
        module.load_state_dict(state)
    except (AttributeError, RuntimeError) as error:
        raise mismatch(published, weights) from error
