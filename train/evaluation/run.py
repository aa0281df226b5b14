"""`avpipe eval` from request to files: choose the predictor and the clips, score, write the results."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write, remove_leftovers
from avpipe.pipeline.core.ids import check_split_name
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.text import one_line
from avpipe.pipeline.work.base import default_workers
from avpipe.train.data.shards import DamagedError, Shards
from avpipe.train.evaluation import bootstrap, leakage, metrics
from avpipe.train.evaluation import evaluate as ev
from avpipe.train.evaluation.audio_ablation import sounds_of_other_classes
from avpipe.train.evaluation.eval_set import EvalSet, clips_of_manifest, clips_of_shards, only, open_split, read_only
from avpipe.train.evaluation.predict import network_maps
from avpipe.train.models.baselines import BASELINES
from avpipe.train.models.load import ModelChoice, choose_model, object_model

log = logging.getLogger(__name__)

Maps = Callable[..., Iterator[np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request(ModelChoice):
    """What to score, and how; `weights` are also used by `object_guided`."""

    split: str
    only: str | None = None
    """A list of clips, or a split, to restrict the score to."""
    object_guided: bool = False
    """Whether to blend the maps with those of an ImageNet network (OGL)."""
    protocol: str = ev.DEFAULT
    """Comma-separated names, or `all`."""
    forbid_leak: bool = False
    """Whether to refuse a checkpoint that was trained on scored clips."""
    workers: int | None = None

    def check(self) -> None:
        """Raise AvpipeError for an invalid combination of options."""
        check_split_name(self.split)
        if self.only is not None:
            check_split_name(self.only_name())
        self.check_choice(*BASELINES)
        if self.object_guided and self.baseline is not None:
            raise AvpipeError("--object-guided blends a model's maps; a baseline is scored as it is")
        if self.weights is not None and not (self.object_guided or self.baseline == "object"):
            raise AvpipeError("--weights names the ImageNet weights of --baseline object or --object-guided; add one")

    def only_name(self) -> str | None:
        """Name of the list in `only`: a split, or a file name without its suffix."""
        return None if self.only is None else Path(self.only).stem

    def folder_name(self) -> str:
        """Name of the result's folder in a run's `eval` folder."""
        only = "" if self.only is None else f"-only-{self.only_name()}"
        return f"{self.split}{only}{'-object-guided' if self.object_guided else ''}"


@dataclass(frozen=True, kw_only=True)
class _Predictor:
    """The source of the maps, and the clips that they are for."""

    name: str
    run: Path
    clips: EvalSet
    maps: Maps
    shards: Shards | None = None
    objects: Maps | None = None
    facts: dict = field(default_factory=dict)
    """What is known about the checkpoint: `checkpoint`, `trained_on`."""
    damaged: dict[int, DamagedError] = field(default_factory=dict)
    """Clips that could not be read, by their position."""


class UnsavedError(AvpipeError):
    """Scores that could not be written."""

    def __init__(self, result: dict, folder: Path, error: OSError):
        super().__init__(
            f"{folder} cannot be written ({error.strerror or error}), so the scores above are not saved; free some "
            "disk space and rerun the command to save them"
        )
        self.result = result


def run_eval(root: Root, request: Request) -> dict:
    """Score and write `<run>/eval/<split>/`: metrics.json, per_clip.parquet and, with frames, sheet.png.

    Returns the contents of metrics.json: the first protocol's scores at the top level, all protocols' under
    `protocols`; for a network also its scores with other sounds under `wrong_audio` and `silence`, and under
    `trained_on` its training data with the leakage. A clip that cannot be read is left out and logged; `clips_damaged`
    counts them. The baseline `centre` needs only the manifest. Raises AvpipeError for an invalid combination of
    options, missing input, and forbidden leakage; UnsavedError, which carries the result, if it cannot be written.
    """
    request.check()
    names = ev.choose_protocols(request.protocol)
    predictor = _centre(root, request) if request.baseline == "centre" else _network(root, request)
    folder = predictor.run / "eval" / request.folder_name()
    with stage_lock(folder, "an evaluation"):
        remove_leftovers(folder)
        kept: dict[str, list[np.ndarray]] = {}
        scores = ev.evaluate(predictor.clips, _keeping(predictor.maps, kept), names, predictor.objects)
        scores = [score.without(predictor.damaged) for score in scores]
        for _, error in sorted(predictor.damaged.items()):
            log.warning("left out: %s", error)
        result = _result(request, predictor, scores, folder)
        _write(result, scores, folder)
        if predictor.shards:
            _write_sheet(predictor, scores[0], kept, f"{predictor.name} on {request.split}", folder / "sheet.png")
    return result


def _result(request: Request, predictor: _Predictor, scores: list[ev.Score], folder: Path) -> dict:
    """Return the contents of metrics.json."""
    damaged, summaries = len(predictor.damaged), [score.summary() for score in scores]
    return {
        "split": request.split,
        "only": request.only_name(),
        "object_guided": request.object_guided,
        "model": predictor.name,
        **predictor.facts,
        "clips_listed": predictor.clips.listed,
        "negatives_listed": predictor.clips.negatives_listed,
        "listed_sha256": predictor.clips.listed_sha256,
        **({"clips_damaged": damaged} if damaged else {}),
        **summaries[0],
        **(_listening(predictor, scores[0]) if predictor.shards and request.baseline != "object" else {}),
        "protocols": {summary["protocol"]: summary for summary in summaries},
        "per_clip": str(folder / "per_clip.parquet"),
        "sheet": str(folder / "sheet.png") if predictor.shards else None,
    }


def _write(result: dict, scores: list[ev.Score], folder: Path) -> None:
    """Write both files, or neither on a full disk, so that an older pair stays consistent."""
    try:
        with atomic_write(folder / "metrics.json") as metrics_file:
            metrics_file.write_text(json.dumps(result, indent=1) + "\n")
            ev.write_per_clip(scores, folder / "per_clip.parquet")
    except OSError as error:
        raise UnsavedError(result, folder, error) from error


def _write_sheet(predictor: _Predictor, score: ev.Score, kept: dict, title: str, path: Path) -> None:
    """Write the contact sheet; a failure is only logged, because the scores do not depend on it."""
    from avpipe.train.evaluation.sheet import write_sheet

    path.unlink(missing_ok=True)  # from an earlier evaluation
    title += f": cIoU@0.5 {score.summary()['ciou']:.3f} ({score.protocol}), best to worst"
    try:
        write_sheet(score, kept[ev.PROTOCOLS[score.protocol].frame], predictor.clips, predictor.shards, title, path)
    except (AvpipeError, OSError, RuntimeError, ValueError) as error:
        log.warning("%s could not be written (%s); the scores are saved", path, one_line(error))


def _chosen(root: Root, request: Request, clips: EvalSet) -> EvalSet:
    """Return the clips, restricted to `only` if given."""
    return clips if request.only is None else only(clips, read_only(root.manifest, request.only))


def _centre(root: Root, request: Request) -> _Predictor:
    clips = _chosen(root, request, clips_of_manifest(root.manifest, request.split))
    run = root.runs / "baseline-centre"
    return _Predictor(name=run.name, run=run, clips=clips, maps=ev.centre_maps(clips))


def _network(root: Root, request: Request) -> _Predictor:
    """A trained, published, untrained or image-only network over the split's shards."""
    shards = open_split(root, request.split)
    clips = _chosen(root, request, clips_of_shards(shards))
    model = choose_model(root, shards, request)
    workers = default_workers() - 1 if request.workers is None else request.workers
    damaged: dict[int, DamagedError] = {}
    maps = network_maps(model.network, shards, clips, model.feature, model.image_px, workers, damaged)
    objects, name = None, model.run.name
    if request.object_guided:
        guide = object_model(root, shards.metadata["extract"]["features"], request.weights)
        objects = network_maps(guide.network, shards, clips, guide.feature, guide.image_px, workers, damaged)
        name += " + object-guided"
    facts = {"checkpoint": model.checkpoint} if model.checkpoint else {}
    if model.trained_on:
        found = leakage.leakage(model.trained_on.clip_ids, clips.clip_ids)
        leakage.warn_or_refuse(name, {clips.split: found} if any(found.values()) else {}, request.forbid_leak)
        facts["trained_on"] = model.trained_on.record() | {"leak": found}
    return _Predictor(
        name=name, run=model.run, clips=clips, maps=maps, shards=shards, objects=objects, facts=facts, damaged=damaged
    )


def _listening(predictor: _Predictor, own: ev.Score) -> dict:
    """Score the first protocol with the sound of another class and with silence: {"wrong_audio": …, "silence": …}.

    Each has `ciou`, `pointing`, and the decrease of cIoU@0.5 as `drop` with its paired `interval`.
    """
    found = {}
    silent = np.full(len(predictor.clips.clip_ids), -1)
    sounds_of = {"wrong_audio": sounds_of_other_classes(predictor.clips.labels), "silence": silent}
    for name, sounds in sounds_of.items():
        (score,) = ev.evaluate(
            predictor.clips,
            lambda frame, sounds=sounds: predictor.maps(frame, sounds),
            [own.protocol],
            predictor.objects,
        )
        score = score.without(predictor.damaged)
        fall = bootstrap.compare(own.scored(), score.scored())
        peaks = [row["peak_inside"] for row in score.scored() if row["box_area"] > 0]
        found[name] = {
            "ciou": metrics.success([row["ciou"] for row in score.scored()]),
            "pointing": float(np.mean(peaks)),
            "drop": fall["difference"],
            "interval": fall["interval"],
        }
    return found


def _keeping(maps: Maps, kept: dict[str, list[np.ndarray]]) -> Maps:
    """Return `maps` as they are, also stored in `kept` for the contact sheet."""

    def keep(frame: str) -> Iterator[np.ndarray]:
        kept[frame] = []
        for map_HW in maps(frame):
            kept[frame].append(map_HW)
            yield map_HW

    return keep
