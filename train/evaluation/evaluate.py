"""Scores: maps of a model or a baseline against the boxes, per clip and protocol, beside floor and ceiling."""

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

# Clips that a process scores at a time; fewer are not worth the start of another one.
PART = 512
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
        """Counts and means: cIoU@0.5, AUC and mean cIoU in [0, 1] with their intervals, floor and ceiling, and groups.

        The floor is the centred disc. `by_size`, `by_boxes` (how many) and `by_class` (of clips with a label) hold
        number, cIoU@0.5 and mean of each group. Negatives enter none of these; where there are any their number is
        given, and under a protocol of cosines how well they are told from the rest: `slavc`.
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

    def without(self, places: Collection[int]) -> "Score":
        """The score without the clips at these places. Raises AvpipeError where none with a box is left."""
        if not places:
            return self
        rows = [row for place, row in enumerate(self.rows) if place not in places]
        if not any(row["box_area"] > 0 and not row["negative"] for row in rows):
            raise AvpipeError(f"{len(places)} clips cannot be read, and no other has a usable box; run `avpipe verify`")
        return Score(protocol=self.protocol, rows=rows)

    def scored(self) -> list[dict]:
        """Rows that enter the means: those with a box, or all where the protocol calls a clip without one a miss.

        Negatives never enter.
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
    """The baseline `centre`: for every clip the same map, highest in the middle."""
    return lambda frame: (metrics.centre_map() for _ in clips.clip_ids)


def evaluate(
    clips: EvalSet,
    maps: Callable[[str], Iterator[np.ndarray]],
    protocols: list[str],
    objects: Callable[[str], Iterator[np.ndarray]] | None = None,
    alpha: float | None = None,
) -> list[Score]:
    """Score the maps under each protocol.

    `maps(frame)` gives the similarity maps (H, W) of all clips in their order, for frame `squash` or `crop`; it is
    called once for each kind of frame. With `objects`, which gives object maps in the same way, the two are blended as
    `ogl.blend` says; `alpha` is its. Raises AvpipeError when no clip has a usable box.
    """
    if not any(clips.boxes):
        raise AvpipeError(f"no clip of {clips.split} here has a usable box; only splits with boxes can be scored")
    parts = [clips.at(some) for some in chunks(range(len(clips.clip_ids)), PART)]
    scores = []
    with _spread(len(parts)) as spread:
        for frame in ("squash", "crop"):
            names = [name for name in protocols if PROTOCOLS[name].frame == frame]
            if names:
                pairs = zip(maps(frame), objects(frame), strict=True) if objects else zip(maps(frame), repeat(None))
                of_parts = (list(islice(pairs, len(part.clip_ids))) for part in parts)
                rows: dict[str, list[dict]] = {name: [] for name in names}
                for row in chain.from_iterable(spread(partial(_score_part, names, alpha), parts, of_parts)):
                    rows[row["protocol"]].append(row)
                scores += [Score(protocol=name, rows=some) for name, some in rows.items()]
    return sorted(scores, key=lambda score: protocols.index(score.protocol))


@contextmanager
def _spread(parts: int) -> Iterator[Callable]:
    """A `map` that spreads its work over the cores, in order; over this process alone where there is little."""
    processes = min(parts, default_workers())
    if processes < 2:
        yield map
        return
    context = get_context("spawn")  # a fork would copy the threads' locks
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        with _ctrl_c_held_back():  # the processes inherit it: to end them is up to this one
            for _ in range(processes):
                pool.submit(os.getpid)  # starts one, as none is idle yet
        yield pool.map


def _end_with_parent() -> None:
    """In a worker: a parent that is killed cannot end it, and without one it would wait for work for ever."""
    parent = parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Within the block SIGINT waits; it comes when the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _score_part(
    names: list[str], alpha: float | None, clips: EvalSet, maps: list[tuple[np.ndarray, np.ndarray | None]]
) -> list[dict]:
    """The rows of some clips, each with its map and object map, under the protocols of one kind of frame."""
    floors = _floors([PROTOCOLS[name] for name in names])
    pairs = enumerate(maps)
    return [row for number, pair in pairs for row in _score_clip(clips, number, _enlarger(*pair, alpha), floors)]


def _floors(protocols: list[Protocol]) -> dict[str, np.ndarray]:
    """The baseline's prediction under each protocol; equal ones are one array."""
    distinct: dict[bytes, np.ndarray] = {}
    predictions = {protocol.name: protocol.predict(metrics.centre_map()) for protocol in protocols}
    return {name: distinct.setdefault(some.tobytes(), some) for name, some in predictions.items()}


def _enlarger(map_HW: np.ndarray, object_HW: np.ndarray | None, alpha: float | None) -> Callable[..., Grid]:
    """A function from a protocol's weights and values to the map (224, 224) that it scores."""

    def enlarged(weights: Weights, values: str) -> Grid:
        large = enlarge(map_HW, weights)
        return large if object_HW is None else ogl.blend(large, enlarge(object_HW, weights), values, alpha)

    return enlarged


def _score_clip(
    clips: EvalSet, number: int, enlarged: Callable[..., Grid], floors: dict[str, np.ndarray]
) -> Iterator[dict]:
    """The rows of one clip under the protocols of `floors`; what several of them have in common is computed once."""
    negative = bool(clips.negative) and clips.negative[number]
    boxes = [] if negative else clips.boxes[number]
    boxes_K4 = [[box[corner] for corner in CORNERS] for box in boxes]
    annotators_K = [box["annotator"] for box in boxes] if clips.voted else None
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
            "clip_id": clips.clip_ids[number],
            "label": clips.labels[number],
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
    """Names out of `all` (the default one first) or a comma-separated list. Raises AvpipeError for an unknown one."""
    names = sorted(PROTOCOLS, key=lambda name: name != DEFAULT) if text == "all" else text.split(",")
    for name in names:
        if name not in PROTOCOLS:
            raise AvpipeError(f"there is no protocol {name!r}; there are: {', '.join(PROTOCOLS)}, all")
    return names
