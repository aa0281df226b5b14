"""The state of a training between two steps: network, optimiser, validation, checkpoints."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.core.distributed import ranks_of
from avpipe.train.data import mixing
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.inputs import Inputs
from avpipe.train.data.loader import Batch
from avpipe.train.data.neighbours import neighbour_table
from avpipe.train.data.shards import Shards
from avpipe.train.data.skipped import Skipped
from avpipe.train.data.split import train_validation_split
from avpipe.train.data.training_samples import TrainingSamples, batches
from avpipe.train.methods import METHODS
from avpipe.train.models.checkpoint import (
    BEST,
    LAST,
    check_same,
    epoch_name,
    load_checkpoint,
    network_of,
    save_checkpoint,
)
from avpipe.train.models.recipes import Recipe
from avpipe.train.run.logs import Log
from avpipe.train.run.preemption import StopSignals
from avpipe.train.run.validation import Validation

SKIPPED = "skipped.csv"
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Training:
    """A run between two steps: the state in its checkpoints and what is derived from it."""

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        shards: Shards,
        run: Path,
        workers: int,
        weights: Path | None,
        select_on: Shards | None,
    ):
        self.fabric, self.recipe, self.shards, self.run = fabric, recipe, shards, run
        self.workers, self.select_on = workers, select_on
        self.skipped = Skipped(run / SKIPPED)
        self.method = METHODS[recipe.method]
        self.inputs = Inputs(fabric.device, recipe.feature)
        self.terms: dict[str, Tensor] = {}
        """The terms of the last step's loss."""
        torch.manual_seed(recipe.seed)
        self.indices, held_out = train_validation_split(shards, recipe.validation, recipe.seed)
        self.plan = self._plan(self.indices)
        if recipe.mixing != "none":
            mixing.check_mixing(shards, self.indices, recipe.feature)
        state = load_checkpoint(run / LAST) if (run / LAST).exists() else {}
        if state:
            check_same(state, recipe, shards, select_on, run)
        self.network, self.optimizer = self._build(state, weights)
        self.classes = self._class_numbers() if self.method.labelled else None
        self.step = state.get("step", 0)
        self.epochs_done = state.get("epochs_done", self.step // self.plan.steps_per_epoch)
        """Completed epochs, validation included: a run may be stopped between an epoch's last step and its end."""
        self.best, self.stopped_early = state.get("best"), state.get("stopped_early", False)
        self.neighbours = self._checked_neighbours(state["neighbours"]) if "neighbours" in state else None
        self.module, self.fabric_optimizer = fabric.setup(self.network, self.optimizer)
        self.validation = Validation(
            fabric=fabric,
            network=self.network,
            samples=self.samples(None),
            inputs=self.inputs,
            held_out=held_out,
            select_on=select_on,
            workers=workers,
            classes=self.classes,
            on_damage=self.skipped,
        )
        if recipe.patience and not self.validation:
            raise AvpipeError("patience needs a validation: use --set validation=FRACTION or --select-on")

    def batches_of(self, epoch: int) -> Iterator[Batch]:
        """Yield the remaining batches of an epoch."""
        steps = range(self.step, (epoch + 1) * self.plan.steps_per_epoch)
        return batches(self.samples(epoch), self.plan, self.fabric.global_rank, steps, self.workers, self.skipped)

    def take_step(self, batch: Batch) -> float:
        """Take one optimiser step; return the loss, averaged over microbatches and ranks."""
        chunks = zip(*(tensor.chunk(self.recipe.accumulate) for tensor in batch.values()), strict=True)
        microbatches = [dict(zip(batch, chunk, strict=True)) for chunk in chunks]
        total = torch.zeros((), device=self.fabric.device, dtype=torch.float64)
        for position, microbatch in enumerate(microbatches):
            labels = () if self.classes is None else (self.classes[microbatch["index"]],)
            last = position == len(microbatches) - 1
            with self.fabric.no_backward_sync(self.module, enabled=not last and self.fabric.world_size > 1):
                loss, terms = self.module(*self.inputs(microbatch), *labels)
                self.fabric.backward(loss / len(microbatches))
            total += loss.detach() / len(microbatches)
        value = self.fabric.all_reduce(total, reduce_op="mean").item()
        self.terms = terms
        self.step += 1
        if not math.isfinite(value):
            shown = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
            raise AvpipeError(f"the loss is {value} at step {self.step} ({shown}); try a smaller learning rate")
        if self.recipe.clip_norm:
            self.fabric.clip_gradients(self.module, self.fabric_optimizer, max_norm=self.recipe.clip_norm)
        self.fabric_optimizer.step()
        self.fabric_optimizer.zero_grad()
        return value

    def end_epoch(self, log: Log, signals: StopSignals) -> None:
        """Validate the current epoch, find similar sounds for mixing, write the checkpoints.

        Raises StopNowError, with no state changed, if a signal arrives during validation or search.
        """
        epoch, more, value = self.epochs_done, self.step < self.plan.steps, None
        with signals.interrupting():
            if self.validation:
                value = self.validation.measure()
            improved, best, stopped_early = self._compared(epoch, value)
            neighbours = self.neighbours
            if self.recipe.mixing != "none" and more and not stopped_early:
                neighbours = self._neighbours(epoch)
        self.best, self.stopped_early, self.neighbours = best, stopped_early, neighbours
        self.epochs_done = epoch + 1
        if self.validation:
            log.epoch(self.step, epoch + 1, self.validation.name, value)
        log.flush()
        # LAST at the end: a run that is killed before this resumes from the previous one and writes all of them again.
        if improved:
            self._write(BEST)
        if self.recipe.keep_epochs and (epoch + 1) % self.recipe.keep_epochs == 0:
            self._write(epoch_name(epoch + 1))
        self._write(LAST)

    def _compared(self, epoch: int, value: float | None) -> tuple[bool, dict | None, bool]:
        """Return (whether `value` is the best so far, the best one, whether patience is exhausted)."""
        if value is None:
            return False, self.best, False
        improved = self.best is None or self.validation.better(value, self.best["value"])
        best = {"epoch": epoch + 1, "measure": self.validation.name, "value": value} if improved else self.best
        patience = self.recipe.patience
        return improved, best, bool(patience) and epoch + 1 - best["epoch"] >= patience and self.step < self.plan.steps

    def _neighbours(self, epoch: int) -> np.ndarray:
        recipe = self.recipe
        return neighbour_table(
            self.fabric, self.network, self.shards, self.indices, recipe.feature, recipe.mixing, recipe.seed + epoch
        )

    def save(self, log: Log) -> None:
        """Flush the log, then write the last checkpoint."""
        log.flush()
        self._write(LAST)

    def _write(self, name: str) -> None:
        if not self.fabric.is_global_zero:
            return
        state = {
            "step": self.step,
            "epochs_done": self.epochs_done,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "rng": torch.get_rng_state(),
            "best": self.best,
            "stopped_early": self.stopped_early,
        }
        if self.neighbours is not None:
            state["neighbours"] = torch.from_numpy(self.neighbours)
        save_checkpoint(self.run / name, state, self.recipe, self.shards, self.select_on)

    def _plan(self, indices: np.ndarray) -> BatchPlan:
        recipe, world_size = self.recipe, self.fabric.world_size
        if recipe.batch_size % (world_size * recipe.accumulate):
            raise AvpipeError(
                f"a batch of {recipe.batch_size} clips cannot be split equally among {world_size} processes with "
                f"accumulate={recipe.accumulate}; use --set batch_size=…"
            )
        return BatchPlan(
            indices=indices,
            batch_size=recipe.batch_size // world_size,
            world_size=world_size,
            epochs=recipe.epochs,
            seed=recipe.seed,
        )

    def samples(self, epoch: int | None) -> TrainingSamples:
        """Return the samples of an epoch; for validation (None) the same ones each time, without mixing."""
        recipe, blend = self.recipe, None
        if epoch is not None and self.neighbours is not None:
            weight, fraction = mixing.schedule(recipe.mixing, epoch, recipe.epochs)
            blend = mixing.Mixing(neighbours=self.neighbours, weight=weight, share=fraction)
        return TrainingSamples(
            shards=self.shards,
            feature=recipe.feature,
            image_px=recipe.image_px,
            seed=recipe.seed,
            view=recipe.view,
            views=self.method.views,
            masking=recipe.masking,
            mixing=blend,
        )

    def _build(self, state: dict, weights: Path | None):
        """Return network and optimiser, from the checkpoint if there is one."""
        recipe, fabric = self.recipe, self.fabric
        if state:
            network = network_of(state)  # does not need the ImageNet weights again
        else:
            network = self.method.network(recipe.options, imagenet_file=weights)
        network = network.to(memory_format=torch.channels_last)  # the layout of tensor cores; 5 % faster on a CPU
        if fabric.world_size > 1 and fabric.device.type == "cuda":  # torch's layer does not support CPUs
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network.ranks = ranks_of(fabric, recipe.negatives)
        network.train()
        if recipe.compile:
            network.compile()
        optimizer = OPTIMIZERS[recipe.optimizer](
            _parameters(network, recipe.learning_rate),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,  # one pass over the parameters, 8 times faster on a CPU
        )
        if state:
            self._restore(state, optimizer)
        return network, optimizer

    def _restore(self, state: dict, optimizer: torch.optim.Optimizer) -> None:
        try:
            optimizer.load_state_dict(state["optimizer"])
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise self._misfit(str(error).strip().partition("\n")[0]) from None
        for parameter, kept in optimizer.state.items():
            if any(
                isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape for value in kept.values()
            ):
                raise self._misfit("its optimizer belongs to another network")

    def _checked_neighbours(self, neighbours: Tensor) -> np.ndarray:
        if neighbours.shape != (len(self.shards),) or neighbours.dtype != torch.int32:
            raise self._misfit("its neighbours do not match the shards")
        if not ((neighbours >= -1) & (neighbours < len(self.shards))).all():
            raise self._misfit("its neighbours are not samples of the shards")
        return neighbours.numpy()

    def _misfit(self, reason: str) -> AvpipeError:
        return AvpipeError(
            f"{self.run / LAST} does not fit the training ({reason}); start a new run with another --name"
        )

    def _class_numbers(self) -> Tensor:
        """Return the class (N,) of each sample, numbered in the order of the labels."""
        names = sorted({label for label in self.shards.labels if label})
        missing = sum(not label for label in self.shards.labels)
        if missing or len(names) > self.recipe.options.classes:
            raise AvpipeError(
                f"{self.recipe.method} needs labels: {self.shards.folder} has {missing} clips without a label and "
                f"{len(names)} labels, {self.recipe.options.classes} are expected (--set classes=…)"
            )
        return torch.tensor([names.index(label) for label in self.shards.labels], device=self.fabric.device)


def _parameters(network: torch.nn.Module, learning_rate: float) -> list:
    """Return the trainable parameters, in groups if the method defines them."""
    if hasattr(network, "parameter_groups"):
        return [group for group in network.parameter_groups(learning_rate) if group["params"]]
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
