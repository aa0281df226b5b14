"""Distributed training under `torchrun`: starting the processes and gathering their features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import remove_leftovers
from avpipe.pipeline.core.locks import stage_lock

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def _identity(features: Tensor) -> Tensor:
    return features


@dataclass(frozen=True, slots=True)
class Ranks:
    """What a network needs to know about the other processes; the default is a single process."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Tensor], Tensor] = _identity
    """Map this rank's features (B, …) to those that its loss contrasts, its own or all ranks'; differentiable."""


def start_fabric(precision: str) -> Fabric:
    """Return Fabric with this process's device and, under `torchrun`, its process group.

    Without `torchrun` one device is used, regardless of what a cluster's scheduler has set in the environment.
    """
    # Imported here because every network imports this module, and few need Fabric.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Fabric(accelerator="auto", devices=1, precision=precision, plugins=[LightningEnvironment()])
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    fabric = Fabric(accelerator="auto", devices=local, num_nodes=world // local, strategy="ddp", precision=precision)
    fabric.launch()
    return fabric


def is_first() -> bool:
    """Return whether this process is the one that prints: rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def ranks_of(fabric: Fabric, negatives: str) -> Ranks:
    """Return the `Ranks` for the networks of this process.

    With `negatives="all"` features are gathered from every rank. Each rank then computes the same loss, that of the
    global batch. The gradient of its own features is the sum over the ranks' identical losses, and DDP's mean over the
    ranks turns it into the gradient of one process with the global batch.
    """
    if fabric.world_size == 1:
        return Ranks()
    return Ranks(fabric.global_rank, fabric.world_size, _Gather.apply if negatives == "all" else _identity)


class _Gather(torch.autograd.Function):
    """An all-gather with gradients; that of torch.distributed.nn mixes up channels-last gradients under gloo."""

    @staticmethod
    def forward(context, features: Tensor) -> Tensor:
        chunks = [
            torch.empty_like(features, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
        ]
        dist.all_gather(chunks, features.contiguous())
        return torch.cat(chunks)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def any_rank(fabric: Fabric, flag: bool) -> bool:
    """Return whether the flag is set on any rank."""
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum") > 0)


@contextmanager
def locked_by_first(fabric: Fabric, folder: Path, what: str) -> Iterator[None]:
    """Lock `folder` on the first rank, as a stage does, and remove what killed processes left there.

    Raises AvpipeError on every rank if another process holds the lock, OSError if the folder is not writable.
    """
    error, message = None, None
    with ExitStack() as stack:
        if fabric.is_global_zero:
            try:
                stack.enter_context(stage_lock(folder, what))
                remove_leftovers(folder)
            except (AvpipeError, OSError) as caught:
                error, message = caught, str(caught)
        if message := fabric.broadcast(message):
            raise error or AvpipeError(message)
        yield
