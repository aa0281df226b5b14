"""What every method has to beat: a map that looks at nothing, one that hears nothing, one that has learned nothing.

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
    """Raise AvpipeError, with the list, unless `name` is None or a baseline."""
    if name is not None and name not in BASELINES:
        raise AvpipeError(f"there is no baseline {name!r}; there are: {', '.join(BASELINES)}")


class ObjectPrior(nn.Module):
    """Where an ImageNet network sees an object, whatever sounds: the prior of EZ-VSL's object-guided localisation."""

    def __init__(self, trunk: nn.Module):
        """`trunk` gives a feature map of frames, as `networks.resnet.image_trunk`."""
        super().__init__()
        self.trunk = trunk

    def localize(self, image_B3HW: Tensor, ignored: Tensor) -> Tensor:
        """Return map_BHW ≥ 0, 7 × 7 for 224 pixels, of frames without ImageNet mean and std; higher is an object."""
        with evaluating(self):
            return object_map(self.trunk(image_B3HW))


def object_prior(weights: Path | None) -> ObjectPrior:
    """The baseline `object`: ResNet-18 of ImageNet. `weights` is its file or a folder with it; else torch's cache.

    Raises AvpipeError where the weights cannot be had. Source: EZ-VSL's released `test.py`.
    """
    return ObjectPrior(image_trunk("imagenet", stride14=False, weights_file=weights))


def random_init() -> tuple[Recipe, nn.Module]:
    """The baseline `random-init`: LVS before any training, always the same, with the recipe that it would train by."""
    recipe = get_recipe("lvs", ["init=random"])
    torch.manual_seed(recipe.seed)
    return recipe, METHODS[recipe.method].network(recipe.options)
