"""Scores of a model's or a baseline's maps against the boxes, per clip and protocol, with floor and ceiling."""

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.parquet import write_parquet
from avpipe.pipeline.manifest.tables import CORNERS
from avpipe.pipeline.work.base import chunks, default_workers
from avpipe.train.evaluation import bootstrap, metrics, ogl, slavc
from avpipe.train.evaluation.eval_set import EvalSet
from avpipe.train.evaluation.protocols import DEFAULT, PROTOCOLS, Protocol
from avpipe.train.evaluation.resize import Grid, Weights, enlarge

# Clips that a process scores at a time; fewer are not worth starting another process.
CHUNK = 512
PER_CLIP = pa.schema(
    [
        ("clip_id", pa.string()),
        ("label", pa.string()),
        ("protocol", pa.string()),
        ("ciou", pa.float64()),
        ("peak_inside", pa.bool_()),
        ("confidence", pa.float64()),
        ("boxes", pa.int32()),
        ("box_area", pa.float64()),
        ("gt_pixels", pa.float64()),
        ("negative", pa.bool_()),
        ("floor_ciou", pa.float64()),
        ("ceiling_ciou", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One protocol's result over all clips."""

    protocol: str
    rows: list[dict]
    """Per clip: the columns of PER_CLIP."""

    def summary(self) -> dict:
        """Return counts and means: cIoU@0.5, AUC, mean cIoU, all in [0, 1], intervals, floor, ceiling and groups.

        The floor is the centred disc. `by_size`, `by_boxes` (number of boxes) and `by_class` (clips with a label) hold
        count, cIoU@0.5 and mean of each group. Negatives are excluded from all of these; if there are any, their count
        is given and, under a protocol of cosines, how well they are detected: `slavc`.
        """
        keep = self.scored()
        boxed = [row for row in keep if row["box_area"] > 0]
        cious, peaks = [row["ciou"] for row in keep], [row["peak_inside"] for row in boxed]
        negatives = sum(row["negative"] for row in self.rows)
        sizes = metrics.size_classes([row["gt_pixels"] for row in boxed])
        of_size = metrics.grouped(sizes.tolist(), [row["ciou"] for row in boxed])
        return {
            "protocol": self.protocol,
            "clips_scored": len(keep),
            "clips_without_box": sum(row["box_area"] == 0 and not row["negative"] for row in self.rows),
            **({"negatives": negatives} if negatives else {}),
            **metrics.summarise(cious),
            "mean": metrics.mean(cious),
            "pointing": float(np.mean(peaks)) if peaks else float("nan"),
            "interval": bootstrap.of_scores(cious, peaks),
            "floor": metrics.summarise([row["floor_ciou"] for row in keep]),
            "ceiling": metrics.summarise([row["ceiling_ciou"] for row in keep]),
            "by_size": {name: of_size[name] for name in metrics.SIZES if name in of_size},
            "by_boxes": metrics.grouped([row["boxes"] for row in keep], cious),
            "by_class": metrics.grouped([row["label"] for row in keep], cious),
            **({"slavc": self._detection()} if negatives and PROTOCOLS[self.protocol].values == "cosine" else {}),
        }

    def without(self, positions: Collection[int]) -> "Score":
        """The score without the clips at these positions. Raises AvpipeError if no clip with a box is left."""
        if not positions:
            return self
        rows = [row for position, row in enumerate(self.rows) if position not in positions]
        if not any(row["box_area"] > 0 and not row["negative"] for row in rows):
            raise AvpipeError(f"{len(positions)} clips cannot be read, no other has a usable box; run `avpipe verify`")
        return Score(protocol=self.protocol, rows=rows)

    def scored(self) -> list[dict]:
        """Rows that count in the means: those with a box, or all if the protocol counts a clip without one as a miss.

        Negatives never count.
        """
        sounding = [row for row in self.rows if not row["negative"]]
        if PROTOCOLS[self.protocol].boxless == "miss":
            return sounding
        return [row for row in sounding if row["box_area"] > 0]

    def _detection(self) -> dict:
        columns = {name: np.array([row[name] for row in self.rows]) for name in ("ciou", "confidence", "negative")}
        clips = slavc.Detections(columns["ciou"], columns["confidence"], ~columns["negative"])
        sizes = np.array([row["gt_pixels"] for row in self.rows])
        return {"published": slavc.published(clips, sizes), "corrected": slavc.corrected(clips)}


def centre_maps(clips: EvalSet) -> Callable[[str], Iterator[np.ndarray]]:
    """Return the baseline `centre`: the same map for every clip, highest in the middle."""
    return lambda frame: (metrics.centre_map() for _ in clips.clip_ids)


def evaluate(
    clips: EvalSet,
    maps: Callable[[str], Iterator[np.ndarray]],
    protocols: list[str],
    objects: Callable[[str], Iterator[np.ndarray]] | None = None,
    alpha: float | None = None,
) -> list[Score]:
    """Score the maps under each protocol.

    `maps(frame)` yields the similarity maps (H, W) of all clips in their order, for frame `squash` or `crop`; it is
    called once per kind of frame. `objects` yields object maps in the same way; the two are then blended by
    `ogl.blend`, which `alpha` is passed to. Raises AvpipeError if no clip has a usable box.
    """
    if not any(clips.boxes):
        raise AvpipeError(f"no available clip of {clips.split} has a usable box; only splits with boxes can be scored")
    subsets = [clips.at(some) for some in chunks(range(len(clips.clip_ids)), CHUNK)]
    scores = []
    with _parallel_map(len(subsets)) as parallel_map:
        for frame in ("squash", "crop"):
            names = [name for name in protocols if PROTOCOLS[name].frame == frame]
            if names:
                pairs = zip(maps(frame), objects(frame), strict=True) if objects else zip(maps(frame), repeat(None))
                maps_of = (list(islice(pairs, len(subset.clip_ids))) for subset in subsets)
                rows: dict[str, list[dict]] = {name: [] for name in names}
                for row in chain.from_iterable(parallel_map(partial(_score_chunk, names, alpha), subsets, maps_of)):
                    rows[row["protocol"]].append(row)
                scores += [Score(protocol=name, rows=some) for name, some in rows.items()]
    return sorted(scores, key=lambda score: protocols.index(score.protocol))


@contextmanager
def _parallel_map(chunk_count: int) -> Iterator[Callable]:
    """A `map` that uses all cores and keeps the order; with a single chunk it runs in this process."""
    processes = min(chunk_count, default_workers())
    if processes < 2:
        yield map
        return
    context = get_context("spawn")  # a fork would copy the threads' locks
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        with _ctrl_c_deferred():  # the workers inherit the blocked signal: this process ends them
            for _ in range(processes):
                pool.submit(os.getpid)  # starts one worker, as none is idle yet
        yield pool.map


def _end_with_parent() -> None:
    """Run in a worker: exit when the parent does, because a parent that is killed cannot end its workers."""
    parent = parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def _ctrl_c_deferred() -> Iterator[None]:
    """Defer SIGINT until the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _score_chunk(
    names: list[str], alpha: float | None, clips: EvalSet, maps: list[tuple[np.ndarray, np.ndarray | None]]
) -> list[dict]:
    """Return the rows of some clips, each with its map and object map, under the protocols of one kind of frame."""
    floors = _floors([PROTOCOLS[name] for name in names])
    pairs = enumerate(maps)
    return [row for position, pair in pairs for row in _score_clip(clips, position, _enlarger(*pair, alpha), floors)]


def _floors(protocols: list[Protocol]) -> dict[str, np.ndarray]:
    """Return the baseline's prediction under each protocol; equal predictions are the same array."""
    distinct: dict[bytes, np.ndarray] = {}
    predictions = {protocol.name: protocol.predict(metrics.centre_map()) for protocol in protocols}
    return {name: distinct.setdefault(some.tobytes(), some) for name, some in predictions.items()}


def _enlarger(map_HW: np.ndarray, object_HW: np.ndarray | None, alpha: float | None) -> Callable[..., Grid]:
    """Return a function from a protocol's weights and values to the map (224, 224) that it scores."""

    def enlarged(weights: Weights, values: str) -> Grid:
        large = enlarge(map_HW, weights)
        return large if object_HW is None else ogl.blend(large, enlarge(object_HW, weights), values, alpha)

    return enlarged


def _score_clip(
    clips: EvalSet, position: int, enlarged: Callable[..., Grid], floors: dict[str, np.ndarray]
) -> Iterator[dict]:
    """Yield the rows of one clip under the protocols of `floors`; what several protocols share is computed once."""
    negative = bool(clips.negative) and clips.negative[position]
    boxes = [] if negative else clips.boxes[position]
    boxes_K4 = [[box[corner] for corner in CORNERS] for box in boxes]
    annotators_K = [box["annotator"] for box in boxes] if clips.multi_annotator else None
    done: dict[tuple, Any] = {}

    def once(key: tuple, make: Callable, *arguments) -> Any:
        key = (make.__name__, *key)
        if key not in done:
            done[key] = make(*arguments)
        return done[key]

    for name, floor in floors.items():
        protocol = PROTOCOLS[name]
        by_boxes = protocol.union, protocol.votes, protocol.covered
        by_map = protocol.weights, protocol.values
        gt = once(by_boxes, protocol.annotate, boxes_K4, annotators_K)
        large = once(by_map, enlarged, protocol.weights, protocol.values)
        prediction = once((*by_map, protocol.scale, protocol.binarise), protocol.foreground, large)
        yield {
            "clip_id": clips.clip_ids[position],
            "label": clips.labels[position],
            "protocol": name,
            "ciou": once((*by_boxes, id(prediction)), metrics.ciou, prediction, gt),
            "peak_inside": once((*by_boxes, *by_map), metrics.pointing, large, gt),
            "confidence": once(by_map, protocol.confidence, large),
            "boxes": len(boxes),
            "box_area": gt.extent / gt.covered.size,
            "gt_pixels": gt.pixels,
            "negative": negative,
            "floor_ciou": once((*by_boxes, id(floor)), metrics.ciou, floor, gt),
            "ceiling_ciou": once((*by_boxes, protocol.pixels), metrics.ceiling, gt, protocol.pixels),
        }


def write_per_clip(scores: list[Score], path: Path) -> None:
    """Write the rows of all protocols as one Parquet table, from which every summary can be computed again."""
    rows = [row for score in scores for row in score.rows]
    write_parquet(pa.Table.from_pylist(rows, PER_CLIP), path)


def choose_protocols(text: str) -> list[str]:
    """Return the names in a comma-separated list, or for `all` every name, the default first.

    Raises AvpipeError for an unknown name.
    """
    names = sorted(PROTOCOLS, key=lambda name: name != DEFAULT) if text == "all" else text.split(",")
    for name in names:
        if name not in PROTOCOLS:
            raise AvpipeError(f"there is no protocol {name!r}; there are: {', '.join(PROTOCOLS)}, all")
    return names
