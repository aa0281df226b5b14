"""Similarity maps of a network over shards, one pass for each kind of frame."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import AvpipeError
from train.evaluate import TestClips
from train.frames import TEST_VIEWS, normalise
from train.loader import collate, read_feature, read_frame
from train.shards import Shards

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class _Samples(Dataset):
    shards: Shards
    numbers: np.ndarray
    frame: str
    feature: str
    px: int

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray] | AvpipeError:
        number = int(self.numbers[place])
        try:
            view = TEST_VIEWS[self.frame](read_frame(self.shards, number), self.px)
            return view, read_feature(self.shards, number, self.feature)
        except AvpipeError as error:  # as in training: raised in the main process, without a worker's traceback
            return error


def network_maps(
    network: nn.Module, shards: Shards, clips: TestClips, feature: str, px: int, workers: int
) -> Callable[[str], Iterator[np.ndarray]]:
    """A function from a kind of frame to the maps (H, W) of all `clips` in their order.

    A map comes from one frame and its own audio, in evaluation mode. Raises AvpipeError for a sample that cannot be
    read: a score over other clips than announced would be no score.
    """
    fabric = Fabric(accelerator="auto", devices=1)
    network = network.to(fabric.device, memory_format=torch.channels_last)

    def maps(frame: str) -> Iterator[np.ndarray]:
        samples = _Samples(shards=shards, numbers=clips.numbers, frame=frame, feature=feature, px=px)
        for batch in DataLoader(samples, batch_size=BATCH, num_workers=workers, collate_fn=collate):
            if isinstance(batch, AvpipeError):
                raise batch
            image_BHW3, spec_B1FT = (fabric.to_device(tensor) for tensor in batch)
            yield from network.localize(normalise(image_BHW3), spec_B1FT.float()).cpu().numpy()

    return maps
