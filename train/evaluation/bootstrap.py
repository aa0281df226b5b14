"""95 % bootstrap intervals over clips, for one result and for the difference between two.

Every score here is a mean over clips, so a resample is described by how often it draws each clip.

Shapes: N clips, M scores.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.evaluation import metrics

LEVEL, RESAMPLES, SEED = 0.95, 1000, 0
# Resamples drawn at a time: they take less than 10 MB on the largest test lists.
_CHUNK = 50


def bootstrap(values_NM: ArrayLike, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Return the percentile interval (M, 2), lower and upper bound, of the mean of each column.

    The same seed and N draw the same resamples, so intervals are reproducible and columns vary together. Without clips
    the bounds are NaN.
    """
    values_NM = np.asarray(values_NM, dtype=np.float64)
    clips, scores = values_NM.shape
    if not clips:
        return np.full((scores, 2), np.nan)
    draw = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = draw.integers(0, clips, (rows, clips)) + np.arange(rows)[:, None] * clips
        times = np.bincount(drawn.ravel(), minlength=rows * clips).reshape(rows, clips)
        means.append(times @ values_NM / clips)
    tail = 50 * (1 - LEVEL)
    return np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0).T


def of_scores(cious_N: ArrayLike, peaks: ArrayLike) -> dict:
    """Return the intervals [lower, upper], in [0, 1], of `ciou` (success at 0.5), `auc` and `pointing`, and how drawn.

    `peaks`: for each clip with a box, whether the maximum is inside it; there may be fewer of these than cIoU values.
    """
    cious_N = np.asarray(cious_N, dtype=np.float64)
    reached_NT = cious_N[:, None] >= metrics.AUC_THRESHOLDS
    area_N = np.trapezoid(reached_NT.astype(np.float64), metrics.AUC_THRESHOLDS, axis=1)
    ciou, auc = bootstrap(np.stack([cious_N >= 0.5, area_N], axis=1)).tolist()
    (pointing,) = bootstrap(np.asarray(peaks, dtype=np.float64)[:, None]).tolist()
    how = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
    return {"ciou": ciou, "auc": auc, "pointing": pointing, **how}


def compare(rows_a: list[dict], rows_b: list[dict]) -> dict:
    """Return the cIoU@0.5 of A minus that of B on the clips that both scored, with a paired interval.

    Rows are per-clip results of one protocol each, as `Score.scored` returns them: `clip_id` and `ciou`, where NaN is a
    miss. The result has `clips` (in common), `difference` and `interval` [lower, upper], both in [-1, 1]: if the
    interval excludes 0, the choice of clips does not explain the difference.

    Raises AvpipeError if the two have no clip in common, or if a clip occurs twice in one of them.
    """
    hits_a, hits_b = _hits(rows_a), _hits(rows_b)
    common = sorted(hits_a.keys() & hits_b.keys())
    if not common:
        raise AvpipeError("the two results have no clip in common, so there is nothing to compare")
    gain_N = np.array([float(hits_a[clip_id]) - hits_b[clip_id] for clip_id in common])
    (interval,) = bootstrap(gain_N[:, None]).tolist()
    return {"clips": len(common), "difference": float(gain_N.mean()), "interval": interval}


def _hits(rows: list[dict]) -> dict[str, bool]:
    hits = {row["clip_id"]: row["ciou"] >= 0.5 for row in rows}
    if len(hits) < len(rows):
        raise AvpipeError("a clip occurs twice in a result; give the rows of a single protocol for each")
    return hits
