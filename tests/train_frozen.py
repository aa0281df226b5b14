"""Run by tests, alone or under torchrun: some steps with frozen batch norm, then the parameters as a file.

    python train_frozen.py SHARDS OUT STEPS RECIPE [key=value …]

Batch norm takes its statistics from a rank's own part of a batch: frozen, two ranks compute what one does.
"""

import sys
from pathlib import Path

import torch

from train import fit as trainer
from train.checkpoint import LAST, load_checkpoint
from train.methods import METHODS
from train.ranks import is_first
from train.recipes import get_recipe
from train.shards import open_shards


def frozen(network: torch.nn.Module) -> torch.nn.Module:
    """The network with batch norm in evaluation mode, whatever mode the rest is in."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train = lambda mode=True, module=module: module
            module.training = False
    return network


def main() -> None:
    shards, out, recipe, *changes = sys.argv[1:]
    chosen = get_recipe(recipe, changes)
    torch.set_num_threads(1)
    build = METHODS[chosen.method].network
    object.__setattr__(METHODS[chosen.method], "network", lambda *args, **kwargs: frozen(build(*args, **kwargs)))
    trainer.fit(chosen, open_shards(shards), Path(out), workers=0)
    if is_first():
        print(load_checkpoint(Path(out) / LAST)["step"])


if __name__ == "__main__":
    main()
