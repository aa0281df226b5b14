"""The processes that train together under `torchrun`: how they start, and how their features come together."""

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
    """What a network must know of the other processes; by default there are none."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Tensor], Tensor] = _identity
    """(B, …) features of this rank to those that its loss contrasts, gradients included: its own, or all ranks'."""


def start_fabric(precision: str) -> Fabric:
    """The device and, under `torchrun`, the process group of this process.

    Without `torchrun` one device is used, whatever a cluster's scheduler has set in the environment.
    """
    # Imported here: networks know of ranks, and most of them never meet Fabric.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Fabric(accelerator="auto", devices=1, precision=precision, plugins=[LightningEnvironment()])
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    fabric = Fabric(accelerator="auto", devices=local, num_nodes=world // local, strategy="ddp", precision=precision)
    fabric.launch()
    return fabric


def is_first() -> bool:
    """Whether this process is the one that talks: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def ranks_of(fabric: Fabric, negatives: str) -> Ranks:
    """What the networks of this process are told.

    With `negatives="all"` features are gathered from every rank. Each rank then computes the same loss of the whole
    batch; the gradient that comes back to its own features is the sum over the ranks' equal losses, and DDP's mean over
    the ranks makes it that of one process with the whole batch.
    """
    if fabric.world_size == 1:
        return Ranks()
    return Ranks(fabric.global_rank, fabric.world_size, _Gather.apply if negatives == "all" else _identity)


class _Gather(torch.autograd.Function):
    """Not torch.distributed.nn's: its backward pass mixes up gradients whose channels are last in memory (gloo)."""

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
    """Whether the flag is set on any rank."""
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum") > 0)


@contextmanager
def locked_by_first(fabric: Fabric, folder: Path, what: str) -> Iterator[None]:
    """The first rank holds `folder` as a stage does, and removes what killed processes left there.

    Raises AvpipeError on every rank where another process holds it, OSError where it cannot be written.
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
