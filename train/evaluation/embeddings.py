"""Embeddings of sounds and frames over shards, in one pass. Shapes: N samples, B batch, C channels."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from avpipe.pipeline.core.progress import ProgressLine
from avpipe.train.data.frames import TEST_VIEWS, normalise
from avpipe.train.data.loader import Sample, stacked
from avpipe.train.data.shards import DamagedError, Shards
from avpipe.train.models.load import Model

log = logging.getLogger(__name__)

# The paper does not state the view; SSL-TIE's released test code uses this one.
FRAME = "crop"
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Embeddings of the readable samples, float32 of unit length."""

    indices: np.ndarray
    """(N,) indices of the samples."""
    audio: np.ndarray
    """(N, C)."""
    visual: np.ndarray | None
    """(N, C); None for an audio-only method."""


def embeddings(model: Model, shards: Shards, indices: np.ndarray, workers: int) -> Embeddings:
    """Return the embeddings of the samples `indices` in their order; unreadable ones are left out and logged.

    Frames are centre crops. SSPL's visual embeddings depend on the clip's sound, through its PCM. Raises AvpipeError if
    no sample can be read.
    """
    readable = np.ones(len(shards), bool)

    def leave_out(error: DamagedError) -> None:
        log.warning("left out: %s", error)
        readable[index_of[error.clip_id]] = False

    index_of = {shards.clip_ids[index]: index for index in indices}
    batches = list(_batches(model, shards, indices, workers, leave_out))
    return Embeddings(
        indices=indices[readable[indices]],
        audio=np.concatenate([audio_BC for _, audio_BC in batches]),
        visual=None if batches[0][0] is None else np.concatenate([visual_BC for visual_BC, _ in batches]),
    )


def _batches(
    model: Model, shards: Shards, indices: np.ndarray, workers: int, on_damage: Callable[[DamagedError], None]
) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """Yield (visual_BC, audio_BC) of each batch; visual_BC is None for an audio-only method."""
    fabric = Fabric(accelerator="auto", devices=1)
    network: nn.Module = model.network.to(fabric.device, memory_format=torch.channels_last)
    has_visual = hasattr(network, "embed")

    def read(index: int) -> Sample:
        view = {"image": TEST_VIEWS[FRAME](shards.frame(int(index)), model.image_px)} if has_visual else {}
        return view | {"spec": shards.feature(int(index), model.feature)}

    chunks = np.split(indices, range(BATCH, len(indices), BATCH))
    with ProgressLine("embed", len(indices)) as line:
        for batch in stacked(chunks, read, workers, on_damage):
            batch = fabric.to_device(batch)
            spec_B1FT = batch["spec"].float()
            if has_visual:
                visual_BC, audio_BC = network.embed(normalise(batch["image"]), spec_B1FT)
                yield _numbers(visual_BC), _numbers(audio_BC)
            else:
                yield None, _numbers(network.embed_audio(spec_B1FT))
            line.advance(len(spec_B1FT))


def _numbers(vectors_BC: Tensor) -> np.ndarray:
    return vectors_BC.float().cpu().numpy()
