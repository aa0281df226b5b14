"""Scores: maps of a model or a baseline against the boxes, per clip and protocol, beside floor and ceiling."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalogue import ids_sha256
from pipeline.errors import AvpipeError
from pipeline.layout import published
from pipeline.manifest import CORNERS, Manifest
from train import metrics
from train.protocols import DEFAULT, PROTOCOLS, Protocol
from train.shards import Shards

PER_CLIP = pa.schema(
    [
        ("clip_id", pa.string()),
        ("label", pa.string()),
        ("protocol", pa.string()),
        ("ciou", pa.float64()),
        ("peak_inside", pa.bool_()),
        ("confidence", pa.float64()),
        ("box_area", pa.float64()),
        ("floor_ciou", pa.float64()),
        ("ceiling_ciou", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class TestClips:
    """Clips to score, in the order of their ids."""

    split: str
    listed: int
    """Clips that the split's list names."""
    listed_sha256: str
    clip_ids: list[str]
    labels: list[str | None]
    boxes: list[list[dict]]
    """Usable boxes: annotator, xmin, ymin, xmax, ymax as fractions of the full frame."""
    voted: bool = False
    """Several annotators drew the boxes: two votes are all (Flickr-SoundNet). Else every box counts fully (VGG-SS)."""
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    """(N,) number of each clip's sample in the shards; empty for clips out of the manifest."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One protocol's result over all clips."""

    protocol: str
    rows: list[dict]
    """Per clip: the columns of PER_CLIP."""

    def summary(self) -> dict:
        """Counts and means; cIoU@0.5 and AUC in [0, 1] with the floor of the centred disc and the ceiling."""
        keep = self.scored()
        boxed = [row for row in keep if row["box_area"] > 0]
        return {
            "protocol": self.protocol,
            "clips_scored": len(keep),
            "clips_without_box": sum(row["box_area"] == 0 for row in self.rows),
            **metrics.summarise([row["ciou"] for row in keep]),
            "pointing": float(np.mean([row["peak_inside"] for row in boxed])) if boxed else float("nan"),
            "floor": metrics.summarise([row["floor_ciou"] for row in keep]),
            "ceiling": metrics.summarise([row["ceiling_ciou"] for row in keep]),
        }

    def scored(self) -> list[dict]:
        """Rows that enter the means: those with a box, or all where the protocol calls a clip without one a miss."""
        if PROTOCOLS[self.protocol].boxless == "miss":
            return self.rows
        return [row for row in self.rows if row["box_area"] > 0]


def clips_of_shards(shards: Shards) -> TestClips:
    """The clips that the shards hold."""
    numbers = np.argsort(np.array(shards.clip_ids))
    boxes = [shards.boxes[n] for n in numbers]
    return TestClips(
        split=shards.split,
        listed=shards.metadata["listed"],
        listed_sha256=shards.metadata["listed_sha256"],
        clip_ids=[shards.clip_ids[n] for n in numbers],
        labels=[shards.labels[n] for n in numbers],
        boxes=boxes,
        voted=_voted(boxes),
        numbers=numbers,
    )


def clips_of_manifest(folder: Path, split: str) -> TestClips:
    """All clips that a split lists, whether downloaded or not: enough for a baseline that looks at nothing."""
    manifest = Manifest.open(folder)
    ids = sorted(manifest.split_ids(split))
    labels, boxes_of = manifest.labels(ids), manifest.usable_boxes(ids)
    boxes = [boxes_of.get(clip_id, []) for clip_id in ids]
    return TestClips(
        split=split,
        listed=len(ids),
        listed_sha256=ids_sha256(ids),
        clip_ids=ids,
        labels=[labels[clip_id] for clip_id in ids],
        boxes=boxes,
        voted=_voted(boxes),
    )


def _voted(boxes: list[list[dict]]) -> bool:
    return any(box["annotator"] != clip[0]["annotator"] for clip in boxes for box in clip)


def centre_maps(clips: TestClips) -> Callable[[str], Iterator[np.ndarray]]:
    """The baseline `centre`: for every clip the same map, highest in the middle."""
    return lambda frame: (metrics.centre_map() for _ in clips.clip_ids)


def evaluate(clips: TestClips, maps: Callable[[str], Iterator[np.ndarray]], protocols: list[str]) -> list[Score]:
    """Score the maps under each protocol.

    `maps(frame)` gives the similarity maps (H, W) of all clips in their order, for frame `squash` or `crop`; it is
    called once for each kind of frame. Raises AvpipeError when no clip has a usable box.
    """
    if not any(clips.boxes):
        raise AvpipeError(f"no clip of {clips.split} here has a usable box; only splits with boxes can be scored")
    scores = []
    for frame in ("squash", "crop"):
        rows_of = [PROTOCOLS[name] for name in protocols if PROTOCOLS[name].frame == frame]
        if rows_of:
            floors = {protocol.name: protocol.predict(metrics.centre_map()) for protocol in rows_of}
            rows: dict[str, list[dict]] = {protocol.name: [] for protocol in rows_of}
            for number, map_HW in enumerate(maps(frame)):
                for protocol in rows_of:
                    rows[protocol.name].append(_score_clip(clips, number, map_HW, protocol, floors[protocol.name]))
            scores += [Score(protocol=name, rows=some) for name, some in rows.items()]
    return sorted(scores, key=lambda score: protocols.index(score.protocol))


def _score_clip(clips: TestClips, number: int, map_HW: np.ndarray, protocol: Protocol, floor: np.ndarray) -> dict:
    boxes_K4 = [[box[corner] for corner in CORNERS] for box in clips.boxes[number]]
    annotators_K = [box["annotator"] for box in clips.boxes[number]]
    gt = protocol.annotate(boxes_K4, annotators_K if clips.voted else None)
    large = protocol.enlarge(map_HW)
    return {
        "clip_id": clips.clip_ids[number],
        "label": clips.labels[number],
        "protocol": protocol.name,
        "ciou": protocol.ciou(large, gt),
        "peak_inside": metrics.pointing(large, gt),
        "confidence": float(large.max()),
        "box_area": float(gt.covered.mean()),
        "floor_ciou": metrics.ciou(floor, gt),
        "ceiling_ciou": metrics.ceiling(gt, protocol.pixels),
    }


def write_per_clip(scores: list[Score], path: Path) -> None:
    """Write the rows of all protocols as one Parquet table, from which every summary can be computed again."""
    rows = [row for score in scores for row in score.rows]
    with published(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, PER_CLIP), temporary)


def choose_protocols(text: str) -> list[str]:
    """Names out of `all` (the default one first) or a comma-separated list. Raises AvpipeError for an unknown one."""
    names = sorted(PROTOCOLS, key=lambda name: name != DEFAULT) if text == "all" else text.split(",")
    for name in names:
        if name not in PROTOCOLS:
            raise AvpipeError(f"there is no protocol {name!r}; there are: {', '.join(PROTOCOLS)}, all")
    return names
