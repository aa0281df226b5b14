"""The training loop: plan, step, log, checkpoint; a run that was killed goes on where its last checkpoint stands."""

import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pipeline.errors import AvpipeError
from pipeline.layout import published
from pipeline.progress import ProgressLine
from train.checkpoint import LAST, data_record, load_checkpoint, network_of, save_checkpoint
from train.frames import normalise
from train.loader import BatchPlan, TrainingSamples, batches
from train.methods import METHODS
from train.recipes import Recipe
from train.shards import Shards

LOG = "log.csv"
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
COLUMNS = ("step", "epoch", "loss", "clips_per_s", "data_wait")
# Weight of the newest step in the figures of the progress line.
SMOOTHING = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """How a training ended."""

    run: Path
    steps: int
    resumed_at: int
    """Step of the checkpoint that this process began from; 0 for a fresh run."""
    loss: float | None
    """Of the last step; None where all steps were done before."""
    seconds: float
    clips_per_s: float
    data_wait: float
    """Share of the time that was spent waiting for data."""


def fit(recipe: Recipe, shards: Shards, run: Path, workers: int, weights: Path | None = None) -> Trained:
    """Train to the end of the recipe, from the run's last checkpoint if it has one.

    Writes `run/last.pt` and `run/log.csv`. Raises AvpipeError when the run was made with other settings or data, when
    the shards do not fill a batch or lack the feature, and when the loss stops being finite.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=recipe.precision)
    torch.manual_seed(recipe.seed)
    plan = BatchPlan(
        samples=len(shards),
        batch_size=recipe.batch_size // fabric.world_size,
        world_size=fabric.world_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
    )
    state = load_checkpoint(run) if (run / LAST).exists() else None
    if state:
        _check_same(state, recipe, shards, run)
    network, optimizer = _build(recipe, state, weights)
    first_step = state["step"] if state else 0
    module, fabric_optimizer = fabric.setup(network, optimizer)
    data = TrainingSamples(
        shards=shards,
        feature=recipe.feature,
        image_px=recipe.image_px,
        seed=recipe.seed,
        view=recipe.view,
        views=METHODS[recipe.method].views,
        masking=recipe.masking,
    )
    stream = batches(data, plan, fabric.global_rank, first_step, workers)
    meter = _Meter(recipe.batch_size)
    with _Log(run / LOG, first_step) as log, ProgressLine("train", plan.steps, "steps") as line:
        line.start_at(first_step)
        for step in range(first_step + 1, plan.steps + 1):
            image_BHW3, spec_B1FT = meter.wait_for(stream)
            loss = _step(fabric, module, fabric_optimizer, image_BHW3, spec_B1FT, step)
            meter.finish_step(loss)
            epoch = plan.epoch(step - 1) + 1
            log.write(step, epoch, meter)
            line.advance(note=f"epoch {epoch}/{plan.epochs} · {meter}")
            if step % plan.steps_per_epoch == 0 or step % recipe.checkpoint_steps == 0:
                log.flush()
                save_checkpoint(run / LAST, network, optimizer, recipe, shards, step)
    return Trained(
        run=run,
        steps=plan.steps,
        resumed_at=first_step,
        loss=meter.loss if first_step < plan.steps else None,
        seconds=meter.seconds,
        clips_per_s=meter.total_rate,
        data_wait=meter.total_wait,
    )


def _build(recipe: Recipe, state: dict | None, weights: Path | None):
    """Network and optimiser, from the checkpoint if there is one."""
    if state:
        network = network_of(state)  # needs no ImageNet weights again
    else:
        network = METHODS[recipe.method].network(recipe.options, imagenet_file=weights)
    network = network.to(memory_format=torch.channels_last)  # what tensor cores read; 5 % on a CPU
    optimizer = OPTIMIZERS[recipe.optimizer](
        _parameters(network, recipe.learning_rate),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,  # one pass over the parameters, 8 times faster on a CPU
    )
    if state:
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
    return network, optimizer


def _parameters(network: torch.nn.Module, learning_rate: float) -> list:
    """All that learns, in groups where a method wants them."""
    if hasattr(network, "parameter_groups"):
        return [group for group in network.parameter_groups(learning_rate) if group["params"]]
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _step(fabric: Fabric, module, optimizer, image_BHW3: Tensor, spec_B1FT: Tensor, step: int) -> float:
    """One optimiser step; returns the loss."""
    image_B3HW = normalise(fabric.to_device(image_BHW3))
    loss, parts = module(image_B3HW, fabric.to_device(spec_B1FT).float())
    value = loss.item()
    if not math.isfinite(value):
        shown = ", ".join(f"{name} {part.item():.4g}" for name, part in parts.items())
        raise AvpipeError(f"the loss is {value} at step {step} ({shown}); try a smaller learning rate")
    optimizer.zero_grad()
    fabric.backward(loss)
    optimizer.step()
    return value


def _check_same(state: dict, recipe: Recipe, shards: Shards, run: Path) -> None:
    """A run goes on only with the settings and the data it was begun with."""
    before = _flat(state["recipe"]) | _flat(state["data"])
    now = _flat(recipe.record()) | _flat(data_record(shards, recipe.feature))
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            difference = "" if name == "clip_ids" else f" ({before.get(name)} then, {now.get(name)} now)"
            raise AvpipeError(f"{run} was begun with another {name}{difference}; give another --name to start anew")


def _flat(record: dict) -> dict:
    flat = {}
    for name, value in record.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


class _Meter:
    """Loss, speed and share of time without data, smoothed for the eye and summed for the end."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.loss = self.rate = self.wait = math.nan
        self.seconds = self._waited = 0.0
        self._steps = 0
        self._begin = time.monotonic()
        self._smooth_loss = math.nan

    def wait_for(self, stream: Iterator):
        """The next batch, on the clock."""
        begin = time.monotonic()
        batch = next(stream)
        self._wait_s = time.monotonic() - begin
        return batch

    def finish_step(self, loss: float) -> None:
        """Take the time since the last step's end."""
        now = time.monotonic()
        step_s, self._begin = now - self._begin, now
        self.loss = loss
        self._steps += 1
        self.seconds += step_s
        self._waited += self._wait_s
        self._smooth_loss = _smoothed(self._smooth_loss, loss)
        self.rate = _smoothed(self.rate, self._batch_size / step_s)
        self.wait = _smoothed(self.wait, self._wait_s / step_s)

    @property
    def total_rate(self) -> float:
        """Clips a second over all steps."""
        return self._steps * self._batch_size / self.seconds if self.seconds else 0.0

    @property
    def total_wait(self) -> float:
        """Share of all time spent waiting for data."""
        return self._waited / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return f"loss {self._smooth_loss:.3f} · {self.rate:.1f} clips/s · waiting for data {self.wait:.0%}"


def _smoothed(old: float, new: float) -> float:
    return new if math.isnan(old) else (1 - SMOOTHING) * old + SMOOTHING * new


class _Log:
    """`log.csv`, a row a step; rows behind the checkpoint that a run goes on from are dropped."""

    def __init__(self, path: Path, first_step: int):
        rows = []
        if first_step and path.exists():
            with open(path, newline="") as file:
                rows = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= first_step]
        with published(path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        self._file = open(path, "a", newline="")  # noqa: SIM115 - closed by __exit__
        self._writer = csv.writer(self._file)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, step: int, epoch: int, meter: _Meter) -> None:
        """Append one step; the loss with all its digits, so that runs can be compared bit for bit."""
        self._writer.writerow([step, epoch, repr(meter.loss), f"{meter.rate:.2f}", f"{meter.wait:.4f}"])

    def flush(self) -> None:
        """Bring the rows to the disk; called before each checkpoint, which must not know more steps than the log."""
        self._file.flush()
