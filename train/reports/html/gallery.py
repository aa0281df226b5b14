"""The clips that a report shows: their selection, and their frames, heat maps, boxes and sound as data URIs.

Shapes: 224 × 224 grid of a protocol; N clips.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import matplotlib
import numpy as np
import soundfile as sf
from PIL import Image

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.samples import AUDIO, MOST_SAMPLES
from avpipe.pipeline.manifest.tables import CORNERS
from avpipe.train.data.frames import visible_region
from avpipe.train.data.shards import Shards
from avpipe.train.evaluation import metrics, ogl
from avpipe.train.evaluation.eval_set import EvalSet, only
from avpipe.train.evaluation.evaluate import Score
from avpipe.train.evaluation.predict import network_maps
from avpipe.train.evaluation.protocols import PROTOCOLS, Protocol
from avpipe.train.evaluation.resize import Grid
from avpipe.train.localize.painting import COLOURS
from avpipe.train.models.load import Model, ModelChoice, choose_model, object_model, trained_model

FRAME_LONG_SIDE, MAP_PX = 320, 112
SOUND_BIT_RATE = 32_000
# MP3 plays everywhere; an ffmpeg without its encoder has a native AAC encoder.
ENCODERS = {"libmp3lame": ("mp3", "audio/mpeg"), "aac": ("mp4", "audio/mp4")}
# Allowed difference between a recomputed cIoU and the stored one before the map is attributed to another model: devices
# and precisions differ by a few pixels at the threshold.
TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A run as the gallery needs it."""

    name: str
    path: Path
    """The run's folder or the checkpoint file."""
    score: Score
    object_guided: bool = False
    published: dict | None = None
    """`file` and `format` of another codebase's checkpoint, from its evaluation."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The clips that the page shows."""

    groups: list[str]
    """Display names."""
    clips: list[dict]
    """Per clip the values that report.js reads; its `groups` are indices into `groups`."""
    notes: list[str]
    """Messages about what is missing or doubtful."""


def rows_with_boxes(score: Score) -> dict[str, dict]:
    """Return clip id to row, for the clips that count in the means and have a box."""
    return {row["clip_id"]: row for row in score.scored() if row["box_area"] > 0}


def choose_clips(shown: list[Shown], held: set[str], count: int) -> dict[str, list[str]]:
    """Return group to clips, at most `count` each: best and worst of each run, random, most changed from the first run.

    All clips have a box, were scored by every run and are in `held`. Ties are broken by clip id; the same input gives
    the same clips. The groups of changes contain only clips that changed, so they may be short or empty.
    """
    rows = [rows_with_boxes(run.score) for run in shown]
    common = sorted(set(held).intersection(*rows))
    groups = {}
    cious = [{clip_id: np.nan_to_num(some[clip_id]["ciou"]) for clip_id in common} for some in rows]
    for run, ciou_of in zip(shown, cious, strict=True):
        ranking = sorted(common, key=ciou_of.__getitem__, reverse=True)
        groups[f"Best of {run.name}"] = ranking[:count]
        groups[f"Worst of {run.name}"] = ranking[::-1][:count]
    first = shown[0].name
    for run, ciou_of in list(zip(shown, cious, strict=True))[1:]:
        gain = {clip_id: ciou_of[clip_id] - cious[0][clip_id] for clip_id in common}
        ranking = sorted(common, key=gain.__getitem__, reverse=True)
        groups[f"Most improved: {run.name} against {first}"] = [c for c in ranking[:count] if gain[c] > 0]
        groups[f"Most worsened: {run.name} against {first}"] = [c for c in ranking[::-1][:count] if gain[c] < 0]
    drawn = np.random.default_rng(0).permutation(len(common))[:count]
    return groups | {"Random": [common[position] for position in sorted(drawn)]}


def gallery(
    root: Root, shown: list[Shown], clips: EvalSet, shards: Shards, count: int, weights: Path | None = None
) -> Gallery:
    """Choose clips, recompute their maps, and encode their pictures and sound.

    A run whose network is not available is shown without maps, and a note gives the reason; another note names a run
    whose maps give a different cIoU than its evaluation. Raises AvpipeError for samples that cannot be read.
    """
    groups = choose_clips(shown, set(clips.clip_ids), count)
    wanted = sorted({clip_id for some in groups.values() for clip_id in some})
    if not wanted:
        return Gallery(groups=[], clips=[], notes=["The shards contain no clip with a box that all runs scored."])
    some = only(clips, wanted)
    protocol = PROTOCOLS[shown[0].score.protocol]
    maps, notes = [], []
    for run in shown:
        try:
            maps.append(list(_maps(root, run, some, shards, protocol, weights)))
            notes += _doubts(run, maps[-1], some, protocol)
        except AvpipeError as error:
            maps.append([None] * len(wanted))
            notes.append(f"No maps of {run.name}: {error}.")
    rows = [rows_with_boxes(run.score) for run in shown]
    records = []
    for position, clip_id in enumerate(wanted):
        found = [(row_of[clip_id]["ciou"], large[position]) for row_of, large in zip(rows, maps, strict=True)]
        number = int(some.indices[position])
        own = {"id": clip_id, "label": some.labels[position], "sound": sound_uri(shards, number)}
        own["groups"] = [number for number, ids in enumerate(groups.values()) if clip_id in ids]
        records.append(own | _picture(shards, number, some.boxes[position], found, protocol.frame))
    if not all(record["sound"] for record in records):
        notes.append("Some clips have no player, because the shards contain no sound for them.")
    return Gallery(groups=list(groups), clips=records, notes=notes)


def _maps(
    root: Root, run: Shown, clips: EvalSet, shards: Shards, protocol: Protocol, weights: Path | None
) -> Iterator[Grid]:
    """Yield the maps (224, 224) of one run as its protocol scores them, in the order of the clips."""
    if run.path.name == "baseline-centre":
        yield from (protocol.enlarge(metrics.centre_map()) for _ in clips.clip_ids)
        return
    model = _model(root, run, shards, weights)
    own = network_maps(model.network, shards, clips, model.feature, model.image_px, 0)(protocol.frame)
    if not run.object_guided:
        yield from (protocol.enlarge(map_HW) for map_HW in own)
        return
    guide = object_model(root, shards.metadata["extract"]["features"], weights)
    objects = network_maps(guide.network, shards, clips, guide.feature, guide.image_px, 0)(protocol.frame)
    for map_HW, object_HW in zip(own, objects, strict=True):
        yield ogl.blend(protocol.enlarge(map_HW), protocol.enlarge(object_HW), protocol.values)


def _model(root: Root, run: Shown, shards: Shards, weights: Path | None) -> Model:
    if run.published:
        return choose_model(
            root, shards, ModelChoice(checkpoint=run.published["file"], format_name=run.published["format"])
        )
    baseline = run.path.name.removeprefix("baseline-")
    if baseline != run.path.name:
        return choose_model(root, shards, ModelChoice(baseline=baseline, weights=weights))
    model = trained_model(run.path)
    model.check_feature(shards)
    return model


def _doubts(run: Shown, maps: list[Grid], clips: EvalSet, protocol: Protocol) -> list[str]:
    """Return a note if the maps are not those that were scored, e.g. because the training continued."""
    rows, differ = rows_with_boxes(run.score), 0
    for clip_id, boxes, large in zip(clips.clip_ids, clips.boxes, maps, strict=True):
        annotators = [box["annotator"] for box in boxes] if clips.multi_annotator else None
        gt = protocol.annotate([[box[corner] for corner in CORNERS] for box in boxes], annotators)
        again, before = metrics.ciou(protocol.foreground(large), gt), rows[clip_id]["ciou"]
        differ += abs(np.nan_to_num(again) - np.nan_to_num(before)) > TOLERANCE
    if not differ:
        return []
    return [
        f"{differ} of the {len(maps)} maps of {run.name} do not give the stored cIoU: its checkpoint or the "
        "shards have changed since; run `avpipe eval` again."
    ]


def _picture(shards: Shards, number: int, boxes: list[dict], found: list[tuple], view: str) -> dict:
    """Return the frame, the region that the network received, boxes and maps; positions are fractions of the frame."""
    frame = shards.frame(number)
    left, top, region_w, region_h = np.array(visible_region(frame, view)) / (frame.size * 2)
    runs = []
    for ciou, large in found:
        one = {"ciou": None if np.isnan(ciou) else round(ciou, 4), "map": None, "peak": None}
        if large is not None:
            x, y = metrics.peak(large)
            one |= {"map": map_uri(large), "peak": _rounded([left + x * region_w, top + y * region_h])}
        runs.append(one)
    frame.thumbnail((FRAME_LONG_SIDE, FRAME_LONG_SIDE), Image.Resampling.LANCZOS)
    return {
        "frame": _image_uri(frame, "JPEG", quality=80),
        "size": list(frame.size),
        "seen": _rounded([left, top, region_w, region_h]),
        "boxes": [_rounded([box[corner] for corner in CORNERS]) for box in boxes],
        "runs": runs,
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


def map_uri(large: Grid) -> str:
    """Return a map (224, 224) as an overlay for the frame: transparent at its minimum, opaque at its maximum."""
    level = (large - large.min()) / max(float(large.max() - large.min()), 1e-12)
    colours = matplotlib.colormaps[COLOURS](level, bytes=True)
    colours[..., 3] = (255 * level).round()
    image = Image.fromarray(colours).resize((MAP_PX, MAP_PX), Image.Resampling.BILINEAR)
    return _image_uri(image, "WEBP", quality=75, exact=True)


def _image_uri(image: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return _uri(f"image/{kind.lower()}", buffer.getvalue())


def sound_uri(shards: Shards, number: int) -> str | None:
    """Return the sound of a sample, compressed for a browser; None if the shards contain no sound.

    Raises AvpipeError if it cannot be read.
    """
    if AUDIO not in shards.offset:
        return None
    try:
        with sf.SoundFile(io.BytesIO(shards.read(number, AUDIO))) as file:
            if not 0 < file.frames * file.channels <= MOST_SAMPLES:
                raise ValueError(f"{file.frames:,} samples of {file.channels} channels")
            pcm_N, rate_hz = file.read(dtype="int16", always_2d=True), file.samplerate
    except (MemoryError, RuntimeError, ValueError) as error:
        raise shards.damaged(number, AUDIO, error) from None
    codec = next(name for name in ENCODERS if name in av.codecs_available)
    form, mime = ENCODERS[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        stream.bit_rate = SOUND_BIT_RATE
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm_N[:, :1].T), format="s16", layout="mono")
        frame.sample_rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return _uri(mime, buffer.getvalue())


def _uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
