"""Retrieval by cosine (SSL-TIE, sections 4.3 and 4.4): clips that sound alike, images that match a sound.

Shapes: N queries, M items to find, C channels, K ranks, B queries at a time.
"""

from collections import Counter
from math import comb

import numpy as np
import torch
from torch import Tensor

from avpipe.pipeline.core.errors import AvpipeError

# Names and measures are those of the paper's tables 5 and 6.
TASKS = {"audio_retrieval": "audio → audio", "cross_modal_retrieval": "audio → image"}
ACCURACY, PRECISION = {"A@5": 5, "A@10": 10}, {"P@1": 1, "P@5": 5}
RANKS = max(ACCURACY.values())
QUERIES = 512
"""Queries at a time: 83 MB of cosines with 20,304 clips."""
# Step of the components of unit vectors. Their products are multiples of 2^-52 and sums of these stay below 2, so that
# float64 is exact: a cosine is the same for any block, order, library and device, and ties are exact.
STEP = 2.0**-26


def exact_units(vectors: np.ndarray | Tensor) -> Tensor:
    """Return vectors (N, C) as float64 unit vectors, rounded to multiples of 2^-26 (about 1.5e-8); zeros stay zeros.

    Raises AvpipeError if one is not finite.
    """
    given = torch.as_tensor(vectors, dtype=torch.float64)
    if not torch.isfinite(given).all():
        raise AvpipeError("some embeddings are not finite; the training of the network diverged, train it again")
    return torch.round(torch.nn.functional.normalize(given, dim=1) / STEP) * STEP


def nearest(query_NC: Tensor, item_MC: Tensor, ranks: int, without_own: bool) -> Tensor:
    """Return item_NK, int64: the `ranks` items with the highest cosine for each query, the best first.

    Both inputs are from `exact_units`. Among equal cosines the item with the lower index comes first. `without_own`
    excludes item n for query n. With fewer items there are fewer ranks.
    """
    ranks = min(ranks, len(item_MC) - without_own)
    found_NK = torch.empty(len(query_NC), ranks, dtype=torch.int64)
    for first in range(0, len(query_NC), QUERIES):
        rows = slice(first, first + QUERIES)
        cosine_BM = query_NC[rows] @ item_MC.T
        if without_own:
            own = torch.arange(len(cosine_BM))
            cosine_BM[own, first + own] = -torch.inf
        found_NK[rows] = _highest(cosine_BM, ranks)
    return found_NK


def _highest(cosine_BM: Tensor, ranks: int) -> Tensor:
    """Return the columns of the highest values, the best first; ties by column, which torch.topk leaves undefined."""
    more = min(ranks + 1, cosine_BM.shape[1])
    value_BK, column_BK = cosine_BM.topk(more, dim=1)
    last_B1 = value_BK[:, ranks - 1 : ranks]
    tied = (value_BK[:, ranks:] == last_B1).any(dim=1)  # some of the tied columns do not fit
    value_BK, column_BK = value_BK[:, :ranks], column_BK[:, :ranks]
    if tied.any():
        minus_M = -torch.arange(cosine_BM.shape[1], dtype=torch.float32)
        equal_BM = torch.where(cosine_BM[tied] == last_B1[tied], minus_M, -torch.inf)
        lowest_BK = -equal_BM.topk(ranks, dim=1).values
        above_B1 = (value_BK[tied] > last_B1[tied]).sum(dim=1, keepdim=True)
        tie_BK = torch.arange(ranks) - above_B1
        equal_BK = lowest_BK.gather(1, tie_BK.clamp(min=0)).long()
        column_BK[tied] = torch.where(tie_BK < 0, column_BK[tied], equal_BK)
    column_BK = column_BK.sort(dim=1).values
    order_BK = cosine_BM.gather(1, column_BK).sort(dim=1, descending=True, stable=True).indices
    return column_BK.gather(1, order_BK)


def measures(item_NK: Tensor, labels: list[str]) -> dict[str, float]:
    """Return A@5, A@10, P@1 and P@5, in [0, 1], of rankings over clips with these labels.

    Rankings have at least ten ranks if there are enough clips. A@K: fraction of queries with their label among the
    first K; P@K: mean fraction of the first K that have it.
    """
    class_N = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    hit_NK = class_N[item_NK] == class_N[:, None]
    accuracy = {name: hit_NK[:, :k].any(dim=1).double().mean().item() for name, k in ACCURACY.items()}
    return accuracy | {name: hit_NK[:, :k].double().mean().item() for name, k in PRECISION.items()}


def chance(labels: list[str], without_own: bool) -> dict[str, float]:
    """Return the expected value of each measure for a random order, given the number of clips per label."""
    total, counts = len(labels) - without_own, Counter(labels)
    expected = dict.fromkeys((*ACCURACY, *PRECISION), 0.0)
    for count in counts.values():
        fraction, matching = count / len(labels), count - without_own
        for name, k in ACCURACY.items():
            expected[name] += fraction * (1 - comb(total - matching, min(k, total)) / comb(total, min(k, total)))
        for name in PRECISION:
            expected[name] += fraction * matching / total
    return expected


def score(audio_NC: np.ndarray, visual_NC: np.ndarray | None, labels: list[str]) -> dict[str, dict]:
    """Return, per task in TASKS, the measures and, under `chance`, their expected values for a random order.

    audio_NC, visual_NC: embeddings of the same clips, of any length. Sounds are compared with those of all other clips
    (the paper's section 4.3.4); images are those of all clips, the query's included (section 4.4.4). Without
    `visual_NC` there is no second task. Raises AvpipeError for fewer than two clips.
    """
    if len(labels) < 2:
        raise AvpipeError(f"{len(labels)} clips with a label are too few to search; shard more of the split")
    query_NC = exact_units(audio_NC)
    items = {"audio_retrieval": query_NC}
    if visual_NC is not None:
        items["cross_modal_retrieval"] = exact_units(visual_NC)
    scores = {}
    for task, item_NC in items.items():
        without_own = task == "audio_retrieval"
        found_NK = nearest(query_NC, item_NC, RANKS, without_own)
        scores[task] = measures(found_NK, labels) | {"chance": chance(labels, without_own)}
    return scores
