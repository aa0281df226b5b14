"""Trainings of thin networks with frozen batch norm, in one process or, as a program under torchrun, in several.

    torchrun --nproc_per_node 2 train_frozen.py SHARDS OUT

Batch norm takes its statistics from a rank's own part of a batch: frozen, two ranks compute what one does.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from thin import patch_networks

from avpipe.train.data.open import open_shards
from avpipe.train.methods import METHODS
from avpipe.train.models.recipes import get_recipe
from avpipe.train.run import fit as trainer

CHANGES = ["image_px=32", "batch_size=4", "epochs=2", "precision=64-true", "mixing=none", "validation=0", "patience=0"]
# EZ-VSL gathers as MarginNCE does, whose network it is.
CASES = {
    "lvs-small": ["spec_pool=8"],
    "marginnce-small": ["anchor=both", "stride14=false"],
    "ssl-tie-small": ["spec_pool=8", "feature=logspec", "mixing=paper"],
}


def _frozen(build: Callable[..., torch.nn.Module], *args, **kwargs) -> torch.nn.Module:
    """The network with batch norm in evaluation mode, whatever mode the rest is in."""
    network = build(*args, **kwargs)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train = lambda mode=True, module=module: module
            module.training = False
    return network


def train_all(shards: Path, out: Path) -> None:
    """A run for each case in the folder `out`."""
    with pytest.MonkeyPatch.context() as patch:
        patch_networks(patch)
        for recipe, changes in CASES.items():
            chosen = get_recipe(recipe, [*CHANGES, *changes])
            method = METHODS[chosen.method]
            patch.setitem(METHODS, chosen.method, replace(method, network=partial(_frozen, method.network)))
            trainer.fit(chosen, open_shards(shards), out / recipe, workers=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]), Path(sys.argv[2]))
