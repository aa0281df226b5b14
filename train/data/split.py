"""Split samples into training and validation sets, by video."""

import numpy as np

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import video_of
from avpipe.pipeline.manifest.derive import seeded_hash
from avpipe.train.data.shards import Shards


def train_validation_split(shards: Shards, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (training indices, validation indices); a `share` of the videos, with the smallest hashes, is held out.

    The same videos are held out for any order of the shards. Raises AvpipeError if either set would be empty.
    """
    indices = np.arange(len(shards))
    if not share:
        return indices, indices[:0]
    videos = [video_of(clip_id) for clip_id in shards.clip_ids]
    order = sorted(set(videos), key=lambda video: seeded_hash(seed, video))
    held_back = set(order[: round(share * len(order))])
    is_held_back = np.array([video in held_back for video in videos])
    if is_held_back.all() or not is_held_back.any():
        raise AvpipeError(f"validation={share} of {len(order)} videos leaves a set empty; choose another share")
    return indices[~is_held_back], indices[is_held_back]
