"""Does it listen? The same frames with the sound of another class, and with silence: a model that hears must lose.

Shapes: N clips.
"""

from functools import cache

import numpy as np

from avpipe.pipeline.features.specs import SPECS


def sounds_of_other_classes(labels: list[str | None], seed: int = 0) -> np.ndarray:
    """(N,) for each clip the place of the clip whose sound it gets instead, each sound used once.

    Clips are put in the order of their labels, those of a label shuffled, and each gets the sound that lies as far
    ahead as the largest class is long: it is of another class wherever no class holds more than half of the clips. A
    clip without a label is a class of its own.
    """
    names = [label or f"\0{number}" for number, label in enumerate(labels)]
    _, class_N = np.unique(names, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(class_N[shuffled], kind="stable")]
    given = np.empty(len(names), int)
    given[order] = np.roll(order, -np.bincount(class_N).max()) if len(names) else order
    return given


@cache
def silence(name: str) -> np.ndarray:
    """(1, …) float16: the feature of a digital silence."""
    spec = SPECS[name]
    return spec.compute(np.zeros(spec.samples, np.float32)).astype(np.float16)[None]
