"""One evaluation from the command line to its files: who predicts, on which clips, and what is written and printed."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write, remove_leftovers
from avpipe.pipeline.core.ids import check_split_name
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.work.base import default_workers
from avpipe.train.core.text import one_line
from avpipe.train.data.shards import DamagedError, Shards
from avpipe.train.evaluation import bootstrap, leakage, metrics
from avpipe.train.evaluation import evaluate as ev
from avpipe.train.evaluation.audio_ablation import sounds_of_other_classes
from avpipe.train.evaluation.eval_set import EvalSet, clips_of_manifest, clips_of_shards, only, open_split, read_only
from avpipe.train.evaluation.predict import network_maps
from avpipe.train.models.baselines import BASELINES
from avpipe.train.models.load import ModelChoice, choose_model, object_model

Maps = Callable[..., Iterator[np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request(ModelChoice):
    """What is to be scored, and how; `weights` serve `object_guided`, too."""

    split: str
    only: str | None = None
    """A list of clips, or a split, that the score is confined to."""
    object_guided: bool = False
    """Whether the maps are blended with those of an ImageNet network (OGL)."""
    protocol: str = ev.DEFAULT
    """Names with commas, or `all`."""
    forbid_leak: bool = False
    """Whether a checkpoint that was trained on scored clips is refused."""
    workers: int | None = None

    def check(self) -> None:
        """Raise AvpipeError for a wrong combination."""
        check_split_name(self.split)
        if self.only is not None:
            check_split_name(self.only_name())
        self.check_choice(*BASELINES)
        if self.object_guided and self.baseline is not None:
            raise AvpipeError("--object-guided blends a model's maps; a baseline is scored as it is")
        if self.weights is not None and not (self.object_guided or self.baseline == "object"):
            raise AvpipeError("--weights names the ImageNet weights of --baseline object or --object-guided; add one")

    def only_name(self) -> str | None:
        """Name of the list that `only` means: a split, or a file without its ending."""
        return None if self.only is None else Path(self.only).stem

    def folder_name(self) -> str:
        """Under what name the result is kept in a run's `eval` folder."""
        only = "" if self.only is None else f"-only-{self.only_name()}"
        return f"{self.split}{only}{'-object-guided' if self.object_guided else ''}"


@dataclass(frozen=True, kw_only=True)
class _Predictor:
    """Who predicts, on what."""

    name: str
    run: Path
    clips: EvalSet
    maps: Maps
    shards: Shards | None = None
    objects: Maps | None = None
    facts: dict = field(default_factory=dict)
    """What is known of the checkpoint: `checkpoint`, `trained_on`."""
    lost: dict[int, DamagedError] = field(default_factory=dict)
    """What the maps could not read, by the place among the clips."""


class UnsavedError(AvpipeError):
    """Scores that could not be written."""

    def __init__(self, result: dict, folder: Path, error: OSError):
        super().__init__(
            f"{folder} cannot be written ({error.strerror or error}), so the scores above are kept nowhere else; make "
            "room, and run the same command again to keep them"
        )
        self.result = result


def run_eval(root: Root, request: Request) -> dict:
    """Score and write `<run>/eval/<split>/`: metrics.json, per_clip.parquet and, with frames, sheet.png.

    Returns what metrics.json holds: the first protocol's figures at the top, all protocols' under `protocols`; for a
    network the same clips with other sounds under `wrong_audio` and `silence`, what it was trained on and what of that
    is scored under `trained_on`. A clip that cannot be read is left out, and said; `clips_damaged` counts them. The
    baseline `centre` needs the manifest alone. Raises AvpipeError for a wrong combination, missing input, and a leak
    that is forbidden, UnsavedError, which has the result, where it cannot be written.
    """
    request.check()
    names = ev.choose_protocols(request.protocol)
    who = _centre(root, request) if request.baseline == "centre" else _network(root, request)
    folder = who.run / "eval" / request.folder_name()
    with stage_lock(folder, "an evaluation"):
        remove_leftovers(folder)
        kept: dict[str, list[np.ndarray]] = {}
        scores = ev.evaluate(who.clips, _keeping(who.maps, kept), names, who.objects)
        scores = [score.without(who.lost) for score in scores]
        for _, error in sorted(who.lost.items()):
            print(f"avpipe: left out: {error}", file=sys.stderr)
        result = _result(request, who, scores, folder)
        _write(result, scores, folder)
        if who.shards:
            _write_sheet(who, scores[0], kept, f"{who.name} on {request.split}", folder / "sheet.png")
    return result


def _result(request: Request, who: _Predictor, scores: list[ev.Score], folder: Path) -> dict:
    """What metrics.json holds."""
    damaged, summaries = len(who.lost), [score.summary() for score in scores]
    return {
        "split": request.split,
        "only": request.only_name(),
        "object_guided": request.object_guided,
        "model": who.name,
        **who.facts,
        "clips_listed": who.clips.listed,
        "negatives_listed": who.clips.negatives_listed,
        "listed_sha256": who.clips.listed_sha256,
        **({"clips_damaged": damaged} if damaged else {}),
        **summaries[0],
        **(_listening(who, scores[0]) if who.shards and request.baseline != "object" else {}),
        "protocols": {summary["protocol"]: summary for summary in summaries},
        "per_clip": str(folder / "per_clip.parquet"),
        "sheet": str(folder / "sheet.png") if who.shards else None,
    }


def _write(result: dict, scores: list[ev.Score], folder: Path) -> None:
    """Both files, or on a full disk neither: those of before stay beside each other."""
    try:
        with atomic_write(folder / "metrics.json") as metrics_file:
            metrics_file.write_text(json.dumps(result, indent=1) + "\n")
            ev.write_per_clip(scores, folder / "per_clip.parquet")
    except OSError as error:
        raise UnsavedError(result, folder, error) from error


def _write_sheet(who: _Predictor, score: ev.Score, kept: dict, title: str, path: Path) -> None:
    """The contact sheet: an extra, whose failure costs no score."""
    from avpipe.train.evaluation.sheet import write_sheet

    path.unlink(missing_ok=True)  # of another evaluation
    title += f": cIoU@0.5 {score.summary()['ciou']:.3f} ({score.protocol}), best to worst"
    try:
        write_sheet(score, kept[ev.PROTOCOLS[score.protocol].frame], who.clips, who.shards, title, path)
    except (AvpipeError, OSError, RuntimeError, ValueError) as error:
        print(f"avpipe: there is no {path} ({one_line(error)}); the scores are written", file=sys.stderr)


def _chosen(root: Root, request: Request, clips: EvalSet) -> EvalSet:
    """The clips that `only` leaves."""
    return clips if request.only is None else only(clips, read_only(root.manifest, request.only))


def _centre(root: Root, request: Request) -> _Predictor:
    clips = _chosen(root, request, clips_of_manifest(root.manifest, request.split))
    run = root.runs / "baseline-centre"
    return _Predictor(name=run.name, run=run, clips=clips, maps=ev.centre_maps(clips))


def _network(root: Root, request: Request) -> _Predictor:
    """A trained, published, fresh or merely seeing network over the split's shards."""
    shards = open_split(root, request.split)
    clips = _chosen(root, request, clips_of_shards(shards))
    model = choose_model(root, shards, request)
    workers = default_workers() - 1 if request.workers is None else request.workers
    lost: dict[int, DamagedError] = {}
    maps = network_maps(model.network, shards, clips, model.feature, model.image_px, workers, lost)
    objects, name = None, model.run.name
    if request.object_guided:
        sees = object_model(root, shards.metadata["extract"]["features"], request.weights)
        objects = network_maps(sees.network, shards, clips, sees.feature, sees.image_px, workers, lost)
        name += " + object-guided"
    facts = {"checkpoint": model.checkpoint} if model.checkpoint else {}
    if model.trained_on:
        found = leakage.leakage(model.trained_on.clip_ids, clips.clip_ids)
        leakage.warn_or_refuse(name, {clips.split: found} if any(found.values()) else {}, request.forbid_leak)
        facts["trained_on"] = model.trained_on.record() | {"leak": found}
    return _Predictor(
        name=name, run=model.run, clips=clips, maps=maps, shards=shards, objects=objects, facts=facts, lost=lost
    )


def _listening(who: _Predictor, own: ev.Score) -> dict:
    """The first protocol again with the sound of another class, and with silence: {"wrong_audio": …, "silence": …}.

    Each holds `ciou`, `pointing`, and by how much cIoU@0.5 falls: `drop` with its paired `interval`.
    """
    found = {}
    quiet = np.full(len(who.clips.clip_ids), -1)
    sounds_of = {"wrong_audio": sounds_of_other_classes(who.clips.labels), "silence": quiet}
    for name, sounds in sounds_of.items():
        (score,) = ev.evaluate(
            who.clips, lambda frame, sounds=sounds: who.maps(frame, sounds), [own.protocol], who.objects
        )
        score = score.without(who.lost)
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
    """The same maps, remembered for the pictures."""

    def keep(frame: str) -> Iterator[np.ndarray]:
        kept[frame] = []
        for map_HW in maps(frame):
            kept[frame].append(map_HW)
            yield map_HW

    return keep
