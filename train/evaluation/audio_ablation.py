"""Audio ablation: frames with the sound of another class, and with silence; a model that uses audio must score lower.

Shapes: N clips.
"""

from functools import cache

import numpy as np

from avpipe.pipeline.features.specs import SPECS


def sounds_of_other_classes(labels: list[str | None], seed: int = 0) -> np.ndarray:
    """Return (N,), for each clip the position of the clip whose sound replaces its own; each sound is used once.

    Clips are sorted by label, shuffled within a label, and each gets the sound as many positions ahead as the largest
    class has clips: it is of another class unless a class has more than half of the clips. A clip without a label is a
    class of its own.
    """
    names = [label or f"\0{position}" for position, label in enumerate(labels)]
    _, class_N = np.unique(names, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(class_N[shuffled], kind="stable")]
    given = np.empty(len(names), int)
    given[order] = np.roll(order, -np.bincount(class_N).max()) if len(names) else order
    return given


@cache
def silence(name: str) -> np.ndarray:
    """Return the feature of digital silence, (1, …) float16."""
    spec = SPECS[name]
    return spec.compute(np.zeros(spec.samples, np.float32)).astype(np.float16)[None]
