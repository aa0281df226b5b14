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
from train.listening import silence
from train.loader import collate, read_feature, read_frame
from train.shards import Shards

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class _Samples(Dataset):
    shards: Shards
    numbers: np.ndarray
    sounds: np.ndarray
    frame: str
    feature: str
    px: int

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray] | AvpipeError:
        number, sound = int(self.numbers[place]), int(self.sounds[place])
        try:
            view = TEST_VIEWS[self.frame](read_frame(self.shards, number), self.px)
            return view, silence(self.feature) if sound < 0 else read_feature(self.shards, sound, self.feature)
        except AvpipeError as error:  # as in training: raised in the main process, without a worker's traceback
            return error


def network_maps(
    network: nn.Module, shards: Shards, clips: TestClips, feature: str, px: int, workers: int
) -> Callable[..., Iterator[np.ndarray]]:
    """A function from a kind of frame to the maps (H, W) of all `clips` in their order.

    As its second argument it takes (N,) whose sound each clip is given instead of its own, by place among the clips, -1
    for silence. A map comes from one frame and one sound, in evaluation mode. Raises AvpipeError for a sample that
    cannot be read: a score over other clips than announced would be no score.
    """
    fabric = Fabric(accelerator="auto", devices=1)
    network = network.to(fabric.device, memory_format=torch.channels_last)

    def maps(frame: str, given: np.ndarray | None = None) -> Iterator[np.ndarray]:
        sounds = clips.numbers if given is None else np.where(given < 0, -1, clips.numbers[given])
        samples = _Samples(shards=shards, numbers=clips.numbers, sounds=sounds, frame=frame, feature=feature, px=px)
        for batch in DataLoader(samples, batch_size=BATCH, num_workers=workers, collate_fn=collate):
            if isinstance(batch, AvpipeError):
                raise batch
            image_BHW3, spec_B1FT = (fabric.to_device(tensor) for tensor in batch)
            yield from network.localize(normalise(image_BHW3), spec_B1FT.float()).cpu().numpy()

    return maps
