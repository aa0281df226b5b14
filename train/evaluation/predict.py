"""Similarity maps of a network over shards, one pass per kind of frame."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.text import one_line
from avpipe.pipeline.features.specs import SPECS
from avpipe.train.data.frames import TEST_VIEWS, normalise
from avpipe.train.data.loader import Sample, stacked
from avpipe.train.data.shards import DamagedError, Shards
from avpipe.train.evaluation.audio_ablation import silence
from avpipe.train.evaluation.eval_set import EvalSet

BATCH = 32


def network_maps(
    network: nn.Module,
    shards: Shards,
    clips: EvalSet,
    feature: str,
    px: int,
    workers: int,
    damaged: dict[int, DamagedError] | None = None,
) -> Callable[..., Iterator[np.ndarray]]:
    """Return a function from a kind of frame to the maps (H, W) of all `clips` in their order.

    The function's optional second argument (N,) replaces each clip's sound: the position among the clips of the one
    whose sound to use, -1 for silence. A map depends on one frame and one sound, in evaluation mode. A clip whose frame
    or sound cannot be read is added to `damaged`, by its position, and gets a meaningless map that must not be scored.
    Without `damaged` its DamagedError is raised.
    """
    fabric = Fabric(accelerator="auto", devices=1)
    network = network.to(fabric.device, memory_format=torch.channels_last)

    def maps(frame: str, given: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield the map (H, W) of each clip; `frame` is a key of TEST_VIEWS, `given` as described above."""
        sounds = clips.sounds if given is None else np.where(given < 0, -1, clips.indices[given])

        def read(position: int) -> Sample:
            try:
                return read_clip(position)
            except DamagedError as error:
                if damaged is None or feature not in SPECS:
                    raise
                damaged[position] = error
                return {"image": np.zeros((px, px, 3), np.uint8), "spec": silence(feature)}

        def read_clip(position: int) -> Sample:
            view = TEST_VIEWS[frame](shards.frame(int(clips.indices[position])), px)
            sound = int(sounds[position])
            return {"image": view, "spec": silence(feature) if sound < 0 else shards.feature(sound, feature)}

        positions = range(len(clips.indices))
        for batch in stacked((positions[first : first + BATCH] for first in positions[::BATCH]), read, workers):
            batch = fabric.to_device(batch)
            yield from localized(network, normalise(batch["image"]), batch["spec"].float())

    return maps


def localized(network: nn.Module, image_B3HW: torch.Tensor, spec_B1FT: torch.Tensor) -> np.ndarray:
    """Return maps_BHW, float32. Raises AvpipeError if the network, built from a checkpoint's settings, cannot."""
    try:
        return network.localize(image_B3HW, spec_B1FT).float().cpu().numpy()
    except RuntimeError as error:
        reason = one_line(str(error).strip().partition("\n")[0])
        sizes = f"frames of {image_B3HW.shape[-1]} pixels and sounds {tuple(spec_B1FT.shape[1:])}"
        raise AvpipeError(f"the network cannot process {sizes} ({reason}); is it the right checkpoint?") from None
