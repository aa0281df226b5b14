"""The clips to score: those of a split with their boxes, the negatives of an extended set, or a subset of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import check_split_name, ids_sha256
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.manifest.list_parsers import parse_list
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.shards.index import INDEX
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import Shards


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Clips to score, in the order of their ids, followed by the negatives of the list if it has any."""

    split: str
    listed: int
    """Clips that the split's list names."""
    listed_sha256: str
    negatives_listed: int = 0
    clip_ids: list[str]
    """Ids of the clips that the frames are from."""
    labels: list[str | None]
    boxes: list[list[dict]]
    """Usable boxes: annotator, xmin, ymin, xmax, ymax as fractions of the full frame."""
    multi_annotator: bool = False
    """Whether several annotators drew the boxes, so that two votes give the full weight (Flickr-SoundNet). Otherwise
    every box counts fully (VGG-SS)."""
    negative: list[bool] = field(default_factory=list)
    """Whether nothing in the frame makes the clip's sound (SLAVC's extended sets), whatever its boxes; empty if no clip
    is negative."""
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    """(N,) index of each frame's sample in the shards; empty for clips that come from the manifest only."""
    sounds: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    """(N,) index of the sample whose sound is used; for a negative often another sample."""

    def at(self, positions: Sequence[int]) -> "EvalSet":
        """Only the clips at these positions, in this order."""
        chosen = {name: [getattr(self, name)[n] for n in positions] for name in ("clip_ids", "labels", "boxes")}
        chosen["negative"] = [self.negative[n] for n in positions] if self.negative else []
        indices = {name: getattr(self, name)[list(positions)] for name in ("indices", "sounds") if len(self.indices)}
        return replace(self, **chosen, **indices)

    def sounding(self) -> "EvalSet":
        """The clips without the negatives."""
        return self.at([n for n, negative in enumerate(self.negative) if not negative]) if self.negative else self


def open_split(root: Root, split: str) -> Shards:
    """Open the shards of a split; for a split of negatives, preceded by the shards of the split that they extend.

    Raises AvpipeError if either is missing, or if the two were extracted with different settings.
    """
    shards = open_shards(root.shards / split)
    base = (shards.metadata.get("negatives") or {}).get("adds_to")
    if base is None:
        return shards
    if not (root.shards / check_split_name(base) / INDEX).exists():  # the index is untrusted
        raise AvpipeError(f"{split} has negatives for {base}, which has no shards; run `avpipe shard --split {base}`")
    return _joined(open_shards(root.shards / base), shards)


def _joined(first: Shards, second: Shards) -> Shards:
    """Return the samples of `first` followed by those of `second`; a clip in both is taken from `first`."""
    if first.metadata["extract"] != second.metadata["extract"]:
        raise AvpipeError(
            f"{first.folder} and {second.folder} were extracted with different settings; run `avpipe extract` and "
            "`avpipe shard` with the same settings for both"
        )
    known = set(first.clip_ids)
    new = np.array([n for n, clip_id in enumerate(second.clip_ids) if clip_id not in known], int)
    members = [name for name in first.offset if name in second.offset]
    joint = {
        what: {name: np.concatenate([getattr(first, what)[name], getattr(second, what)[name][new]]) for name in members}
        for what in ("offset", "size")
    }
    return Shards(
        folder=first.folder.parent,
        metadata=second.metadata | {"listed": first.metadata["listed"], "sounding": len(first)},
        clip_ids=first.clip_ids + [second.clip_ids[n] for n in new],
        labels=first.labels + [second.labels[n] for n in new],
        boxes=[*first.boxes, *(second.boxes[n] for n in new)],
        shard_names=[f"{some.folder.name}/{name}" for some in (first, second) for name in some.shard_names],
        shard_of=np.concatenate([first.shard_of, second.shard_of[new] + len(first.shard_names)]),
        **joint,
    )


def clips_of_shards(shards: Shards) -> EvalSet:
    """Return the clips in the shards, and the negatives whose frame and sound are both in the shards."""
    index_of = {clip_id: index for index, clip_id in enumerate(shards.clip_ids)}
    return _with_negatives(
        shards.split,
        shards.clip_ids[: shards.metadata.get("sounding")],
        shards.metadata.get("negatives"),
        {clip_id: shards.labels[index] for clip_id, index in index_of.items()},
        {clip_id: shards.boxes[index] for clip_id, index in index_of.items()},
        index_of,
        (shards.metadata["listed"], shards.metadata["listed_sha256"]),
    )


def clips_of_manifest(folder: Path, split: str) -> EvalSet:
    """Return all clips that a split lists, downloaded or not: enough for a baseline that reads no data."""
    manifest = Manifest.open(folder)
    negatives, own = manifest.negatives(split), manifest.split_ids(split)
    sounding = manifest.split_ids((negatives or {}).get("adds_to") or split)
    labels, boxes = manifest.labels({*sounding, *own}), manifest.usable_boxes({*sounding, *own})
    return _with_negatives(split, sounding, negatives, labels, boxes, {}, (len(sounding), ids_sha256(own)))


def _with_negatives(
    split: str,
    sounding: list[str],
    negatives: dict | None,
    labels: dict[str, str | None],
    boxes: dict[str, list[dict]],
    index_of: dict[str, int],
    listed: tuple[int, str],
) -> EvalSet:
    """Return the sounding clips in the order of their ids, then the available pairs of `Manifest.negatives`."""
    pairs = negatives["pairs"] if negatives else []
    if pairs and not negatives["adds_to"]:
        frames = {frame for frame, _ in pairs}
        sounding, listed = [clip_id for clip_id in sounding if clip_id in frames], (len(frames), listed[1])
    positives, found = sorted(sounding), [pair for pair in pairs if labels.keys() >= set(pair)]
    frame_ids, sound_ids = positives + [frame for frame, _ in found], positives + [sound for _, sound in found]
    boxes_of = [boxes.get(clip_id, []) for clip_id in frame_ids]
    return EvalSet(
        split=split,
        listed=listed[0],
        listed_sha256=listed[1],
        negatives_listed=len(pairs),
        clip_ids=frame_ids,
        labels=[labels[clip_id] for clip_id in frame_ids],
        boxes=boxes_of,
        multi_annotator=any(box["annotator"] != clip[0]["annotator"] for clip in boxes_of for box in clip),
        negative=[False] * len(positives) + [True] * len(found) if found else [],
        indices=np.array([index_of[clip_id] for clip_id in frame_ids] if index_of else [], int),
        sounds=np.array([index_of[clip_id] for clip_id in sound_ids] if index_of else [], int),
    )


def only(clips: EvalSet, ids: list[str]) -> EvalSet:
    """Return only the clips whose frames `ids` names; all `ids` count as listed. Raises AvpipeError if none is left."""
    wanted = set(ids)
    positions = [position for position, clip_id in enumerate(clips.clip_ids) if clip_id in wanted]
    if not positions:
        raise AvpipeError(f"none of the {len(wanted)} clips of the list is in {clips.split}; name clips of that split")
    return replace(clips.at(positions), listed=len(wanted), listed_sha256=ids_sha256(sorted(wanted)))


def read_only(manifest: Path, text: str) -> list[str]:
    """Return the clip ids of a list: a file with one id per line, or a split of the manifest in the folder `manifest`.

    Raises AvpipeError if `text` is neither, and, naming file and line, if a line is not an id.
    """
    path = Path(text)
    if path.is_file():
        return [row.clip_id for row in parse_list(path, "ids")]
    if path.suffix or "/" in text:
        raise AvpipeError(f"{path} does not exist; --only takes a file with one clip id per line, or a split's name")
    return Manifest.open(manifest).split_ids(text)
