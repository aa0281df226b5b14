"""Baselines: `centre` ignores the input, `object` ignores the audio, `random-init` is an untrained network.

`centre` is a disc in the middle and needs no network (`evaluation.evaluate.centre_maps`); the other two are here.
Shapes: B batch, H × W positions (pixels for an input image).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.methods import METHODS
from avpipe.train.methods.ez_vsl import object_map
from avpipe.train.models.recipes import Recipe, get_recipe
from avpipe.train.networks.resnet import evaluating, image_trunk

BASELINES = ("centre", "object", "random-init")


def check_baseline(name: str | None) -> None:
    """Raise AvpipeError, listing the baselines, unless `name` is None or one of them."""
    if name is not None and name not in BASELINES:
        raise AvpipeError(f"there is no baseline {name!r}; there are: {', '.join(BASELINES)}")


class ObjectPrior(nn.Module):
    """Objects found by an ImageNet network regardless of the audio: EZ-VSL's object-guided localisation (OGL)."""

    def __init__(self, trunk: nn.Module):
        """Use `trunk`, which maps frames to a feature map, like `networks.resnet.image_trunk`."""
        super().__init__()
        self.trunk = trunk

    def localize(self, image_B3HW: Tensor, ignored: Tensor) -> Tensor:
        """Return map_BHW ≥ 0, 7 × 7 for 224 pixels, of ImageNet-normalised frames; high on objects."""
        with evaluating(self):
            return object_map(self.trunk(image_B3HW))


def object_prior(weights: Path | None) -> ObjectPrior:
    """Return the baseline `object`: ResNet-18 with ImageNet weights, from the path `weights` or torch's cache.

    Raises AvpipeError if the weights are not available. Source: EZ-VSL's released `test.py`.
    """
    return ObjectPrior(image_trunk("imagenet", stride14=False, weights_file=weights))


def random_init() -> tuple[Recipe, nn.Module]:
    """Return the baseline `random-init`: the recipe of LVS and its untrained network, with a fixed seed."""
    recipe = get_recipe("lvs", ["init=random"])
    torch.manual_seed(recipe.seed)
    return recipe, METHODS[recipe.method].network(recipe.options)
