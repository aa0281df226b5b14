"""What the tests of the trainer share: shards, a root with a small run, stopped trainings, the command line.

A module takes the fixtures with `pytest_plugins = ["train_fixtures"]`.
"""

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from thin import patch_networks
from typer.testing import CliRunner

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.stage import extract
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.shards.write import shard
from avpipe.train.cli.main import app
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import Shards
from avpipe.train.models.recipes import get_recipe
from avpipe.train.networks.resnet import image_trunk
from avpipe.train.run.fit import fit
from avpipe.train.run.logs import LOG

# What uses one of these trains, or uses a training.
TRAININGS = {"small_run", "two_runs", "undisturbed"}
TINY = ["image_px=32", "batch_size=4"]
SMALL = [*TINY, "spec_pool=8"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if TRAININGS & set(getattr(item, "fixturenames", ())):
            item.add_marker("heavy")


@pytest.fixture(scope="session")
def shards(done_root) -> Shards:
    """The sixteen training samples of the corpus."""
    return open_shards(done_root.shards / "synth_train")


@pytest.fixture
def copied(done_root, tmp_path) -> Path:
    """A folder with these shards that a test may change."""
    return shutil.copytree(done_root.shards / "synth_train", tmp_path / "synth_train")


def linked(folder: Path, done_root: Root) -> Root:
    """A root with the corpus's shards and manifest, and with runs of its own."""
    folder.mkdir(exist_ok=True)
    for name in ("shards", "manifest"):
        (folder / name).symlink_to(getattr(done_root, name))
    return Root(folder)


@pytest.fixture
def own_root(done_root, tmp_path) -> Root:
    return linked(tmp_path / "root", done_root)


@pytest.fixture(scope="session")
def small_run(once, shards) -> Path:
    """A short training of a thin network: for modules that import `thin_networks`. Do not change it."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch_networks(patch)
            fit(get_recipe("lvs-small", [*SMALL, "epochs=1"]), shards, folder, workers=0)

    return once("small_run", make)


@pytest.fixture(scope="module")
def trained(small_run, done_root, tmp_path_factory) -> Root:
    """A root of the module's own with the run `small`."""
    root = linked(tmp_path_factory.mktemp("trained"), done_root)
    shutil.copytree(small_run, root.runs / "small")
    return root


@pytest.fixture(scope="session")
def all_features(once, done_root) -> Root:
    """A root with shards of both splits that hold every feature of a method or of a published network."""

    def make(folder: Path) -> None:
        root, settings = Root(folder), ExtractSettings(features=("logspec", "logspec-10s", "tie-mel", "vggish"))
        folder.mkdir()
        for name in ("manifest", "clips", "ledger"):
            shutil.copytree(getattr(done_root, name), getattr(root, name))
        extract(root, Manifest.open(root.manifest).ids(None), settings, workers=1)
        for split in ("synth_train", "synth_test"):
            shard(root, split, settings, ShardSettings(samples_per_shard=5), workers=1)

    return Root(once("all-features", make))


def imagenet_weights(folder: Path) -> Path:
    """The folder, with a file in the place of the ImageNet weights of ResNet-18."""
    torch.manual_seed(0)
    torch.save(image_trunk("random", stride14=False).state_dict(), folder / "resnet18-f37072fd.pth")
    return folder


def avpipe(root: Root, *arguments: object) -> str:
    """Standard output of a command in this process; its refusals are raised."""
    done = CliRunner().invoke(app, ["--root", str(root.path), *map(str, arguments)])
    if isinstance(done.exception, AvpipeError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """A training within the block gets SIGTERM at this step of its own, and says so."""
    steps = iter(range(1, 10_000))
    refusal = pytest.raises(AvpipeError, match=f"stopped by SIGTERM after step {step}")
    with pytest.MonkeyPatch.context() as patch, refusal:
        patch.setattr("avpipe.train.run.fit.any_rank", lambda fabric, flag: next(steps) == step)
        yield


def logged(run: Path, *columns: str, name: str = LOG) -> list[tuple[str, ...]]:
    """Columns of a run's log."""
    with open(run / name, newline="") as file:
        return [tuple(row[column] for column in columns) for row in csv.DictReader(file)]


def assert_same_batches(ours, theirs) -> None:
    for batch, same in zip(ours, theirs, strict=True):
        assert batch.keys() == same.keys()
        assert all(torch.equal(part, same[name]) for name, part in batch.items())
