"""Object-guided localisation for every method: a similarity map blended with an objectness map.

Source: EZ-VSL, test.py, commit 95ff5bf; for cosines SLAVC, test.py, commit 05b429c.
"""

from typing import Literal

from avpipe.train.evaluation.protocols import cosine_to_unit, min_max
from avpipe.train.evaluation.resize import Grid

# Weight of the similarity map in the blend, as in the published results of EZ-VSL and SLAVC.
ALPHA = {"relative": 0.4, "cosine": 0.9}
# SLAVC's largest value of an object map, the channel mean of |features| of an ImageNet ResNet-18.
OBJECT_LIMIT = 2.5


def blend(large: Grid, objects: Grid, values: Literal["relative", "cosine"], alpha: float | None = None) -> Grid:
    """Return the blend (224, 224), to be scored as a similarity map under a protocol of the same `values`.

    `large` is a similarity map and `objects` an object map (any values, larger where an object is more likely), both
    enlarged to (224, 224) as the protocol does. `alpha` in [0, 1] is the weight of the similarity map, by default the
    published one; 0 uses the image only.

    "relative": both maps are stretched to [0, 1], and so is the blend. "cosine": the similarity map must hold cosines,
    the object map values from 0 to about 2.5; nothing is stretched, and the result is on the scale of cosines, where
    the protocol's threshold is 0.
    """
    weight = ALPHA[values] if alpha is None else alpha
    if values == "relative":
        return min_max(min_max(large) * weight + min_max(objects) * (1 - weight))
    return 2 * (cosine_to_unit(large) * weight + objects / OBJECT_LIMIT * (1 - weight)) - 1
