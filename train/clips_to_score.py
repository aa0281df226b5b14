"""What is scored: the clips of a split with their boxes, the negatives of an extended set, or a part of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.catalogue import ids_sha256
from pipeline.errors import AvpipeError
from pipeline.lists import parse_list
from pipeline.manifest import Manifest
from train.shards import Shards


@dataclass(frozen=True, kw_only=True)
class TestClips:
    """Clips to score, in the order of their ids; behind them, where a list has any, its negatives."""

    split: str
    listed: int
    """Clips that the split's list names."""
    listed_sha256: str
    clip_ids: list[str]
    """Of the frames."""
    labels: list[str | None]
    boxes: list[list[dict]]
    """Usable boxes: annotator, xmin, ymin, xmax, ymax as fractions of the full frame."""
    voted: bool = False
    """Several annotators drew the boxes: two votes are all (Flickr-SoundNet). Else every box counts fully (VGG-SS)."""
    negative: list[bool] = field(default_factory=list)
    """Nothing in the frame makes the clip's sound (SLAVC's extended sets), whatever its boxes; empty: true of none."""
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    """(N,) number of each frame's sample in the shards; empty for clips out of the manifest."""
    sounds: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    """(N,) number of the sample whose sound is played: of a negative often another one."""

    def at(self, places: Sequence[int]) -> "TestClips":
        """The clips at these places alone, in this order."""
        chosen = {name: [getattr(self, name)[n] for n in places] for name in ("clip_ids", "labels", "boxes")}
        chosen["negative"] = [self.negative[n] for n in places] if self.negative else []
        numbers = {name: getattr(self, name)[list(places)] for name in ("numbers", "sounds") if len(self.numbers)}
        return replace(self, **chosen, **numbers)

    def sounding(self) -> "TestClips":
        """The clips without the negatives."""
        return self.at([n for n, negative in enumerate(self.negative) if not negative]) if self.negative else self


def clips_of_shards(shards: Shards) -> TestClips:
    """The clips that the shards hold."""
    number_of = {clip_id: number for number, clip_id in enumerate(shards.clip_ids)}
    return _with_negatives(
        shards.split,
        sorted(number_of),
        shards.metadata.get("pairs", []),
        {clip_id: shards.labels[number] for clip_id, number in number_of.items()},
        {clip_id: shards.boxes[number] for clip_id, number in number_of.items()},
        number_of,
        (shards.metadata["listed"], shards.metadata["listed_sha256"]),
    )


def clips_of_manifest(folder: Path, split: str) -> TestClips:
    """All clips that a split lists, whether downloaded or not: enough for a baseline that looks at nothing."""
    manifest = Manifest.open(folder)
    ids, pairs = sorted(manifest.split_ids(split)), manifest.pairs(split)
    labels, boxes = manifest.labels(ids), manifest.usable_boxes(ids)
    return _with_negatives(split, ids, pairs, labels, boxes, {}, (len(ids), ids_sha256(ids)))


def _with_negatives(
    split: str,
    ids: list[str],
    pairs: list[list[str]],
    labels: dict[str, str | None],
    boxes: dict[str, list[dict]],
    number_of: dict[str, int],
    listed: tuple[int, str],
) -> TestClips:
    """The clips `ids`; of a list of pairs of frame and sound the frames among them, and each pair as a negative."""
    here = set(ids)
    if pairs:
        frames = {frame for frame, _ in pairs}
        ids, listed = [clip_id for clip_id in ids if clip_id in frames], (len(frames), listed[1])
    pairs = [(frame, sound) for frame, sound in pairs if frame in here and sound in here]
    shown, heard = ids + [frame for frame, _ in pairs], ids + [sound for _, sound in pairs]
    found = [boxes.get(clip_id, []) for clip_id in shown]
    return TestClips(
        split=split,
        listed=listed[0],
        listed_sha256=listed[1],
        clip_ids=shown,
        labels=[labels[clip_id] for clip_id in shown],
        boxes=found,
        voted=any(box["annotator"] != clip[0]["annotator"] for clip in found for box in clip),
        negative=[False] * len(ids) + [True] * len(pairs) if pairs else [],
        numbers=np.array([number_of[clip_id] for clip_id in shown] if number_of else [], int),
        sounds=np.array([number_of[clip_id] for clip_id in heard] if number_of else [], int),
    )


def only(clips: TestClips, ids: list[str]) -> TestClips:
    """The clips whose frames `ids` names; what it names besides counts as listed. Raises AvpipeError for none."""
    wanted = set(ids)
    places = [place for place, clip_id in enumerate(clips.clip_ids) if clip_id in wanted]
    if not places:
        raise AvpipeError(f"none of the {len(wanted)} clips of the list is in {clips.split}; name clips of that split")
    return replace(clips.at(places), listed=len(wanted), listed_sha256=ids_sha256(sorted(wanted)))


def read_only(manifest: Path, text: str) -> list[str]:
    """Clip ids of a list: a file with one id a line, or a split of the manifest in the folder `manifest`.

    Raises AvpipeError for what is neither, and naming file and line for what is no id.
    """
    path = Path(text)
    if path.is_file():
        return [row.clip_id for row in parse_list(path, "ids")]
    if path.suffix or "/" in text:
        raise AvpipeError(f"{path} is not there; --only takes a file with one clip id a line, or the name of a split")
    return Manifest.open(manifest).split_ids(text)
