"""Selection of the best epoch: by the loss on held-out training clips, or by cIoU on a split with boxes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.samples import FRAME, feature_member
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.inputs import Inputs
from avpipe.train.data.shards import DamagedError, Shards
from avpipe.train.data.training_samples import TrainingSamples, batches
from avpipe.train.networks.resnet import evaluating

BATCH = 64
# Seed of the views and transforms for the validation loss: the same in every epoch, and not used in training.
SEED = 2**31 - 1


@dataclass
class Validation:
    """Validates a network after an epoch; false if there is no validation data."""

    fabric: Fabric
    network: nn.Module
    samples: TrainingSamples
    inputs: Inputs
    held_out: np.ndarray
    select_on: Shards | None
    workers: int
    classes: torch.Tensor | None
    """(N,) class of each sample, for a loss that takes it."""
    on_damage: Callable[[DamagedError], None]
    """Called with each damaged sample, as in `data.training_samples.batches`."""

    def __post_init__(self):
        """Raise AvpipeError now for errors that would otherwise end the training after its first epoch."""
        if self.select_on is not None:
            self._check_select_on(self.select_on)
        elif 0 < len(self.held_out) < self.fabric.world_size:
            raise AvpipeError(
                f"validation holds out {len(self.held_out)} clips, fewer than the {self.fabric.world_size} processes "
                "that share them; use a larger fraction with --set validation=…"
            )

    def _check_select_on(self, select_on: Shards) -> None:
        name, training_shards = self.samples.feature, self.samples.shards
        here, there = (some.metadata["extract"]["features"].get(name) for some in (training_shards, select_on))
        if here != there or not {FRAME, feature_member(name)} <= set(select_on.offset):
            raise AvpipeError(
                f"{select_on.folder} holds {name} {there}, the shards of the training {here}; extract and shard both "
                "with the same feature"
            )
        if not any(select_on.boxes):
            raise AvpipeError(
                f"{select_on.folder} has no clip with a usable box to select epochs by; use another split"
            )

    def __bool__(self) -> bool:
        return self.select_on is not None or len(self.held_out) > 0

    @property
    def name(self) -> str:
        """Name of the measure."""
        return f"ciou_{self.select_on.split}" if self.select_on else "validation_loss"

    @property
    def better(self) -> Callable[[float, float], bool]:
        """Whether the first value is better than the second."""
        return float.__gt__ if self.select_on else float.__lt__

    def measure(self) -> float:
        """Return the mean loss on held-out clips, or cIoU@0.5 (protocol avpipe) on `select_on`; equal on all ranks."""
        if self.select_on is None:
            return self._loss()
        return self.fabric.broadcast(self._ciou() if self.fabric.is_global_zero else 0.0)

    def _loss(self) -> float:
        world_size = self.fabric.world_size
        plan = BatchPlan(
            indices=self.held_out,
            batch_size=max(1, min(BATCH, len(self.held_out)) // world_size),
            world_size=world_size,
            epochs=1,
            seed=SEED,
        )
        samples = replace(self.samples, seed=SEED)
        stream = batches(samples, plan, self.fabric.global_rank, range(plan.steps), self.workers, self.on_damage)
        total = torch.zeros((), device=self.fabric.device)
        with torch.random.fork_rng(devices=[]), evaluating(self.network), self.fabric.autocast():
            torch.manual_seed(SEED)
            dtype = next(self.network.parameters()).dtype
            for batch in stream:
                inputs = [tensor.to(dtype) for tensor in self.inputs(batch)]
                labels = () if self.classes is None else (self.classes[batch["index"]],)
                total += self.network.loss(*inputs, *labels)[0].float()
        return self.fabric.all_reduce(total / plan.steps, reduce_op="mean").item()

    def _ciou(self) -> float:
        from avpipe.train.evaluation import evaluate
        from avpipe.train.evaluation.eval_set import clips_of_shards
        from avpipe.train.evaluation.predict import network_maps

        clips, damaged = clips_of_shards(self.select_on), {}
        maps = network_maps(
            self.network, self.select_on, clips, self.samples.feature, self.samples.image_px, self.workers, damaged
        )
        (score,) = evaluate.evaluate(clips, maps, [evaluate.DEFAULT])
        for _, error in sorted(damaged.items()):
            self.on_damage(error)
        return score.without(damaged).summary()["ciou"]
