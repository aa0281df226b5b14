"""One evaluation from the command line to its files: who predicts, on which clips, and what is written and printed."""

import json
from collections.abc import Callable, Iterator

import numpy as np

from pipeline.errors import AvpipeError
from pipeline.layout import Root, check_split_name, published
from pipeline.parts import default_workers
from train import evaluate as ev
from train.shards import Shards, open_shards


def run_eval(
    root: Root, split: str, checkpoint: str | None, baseline: str | None, protocol: str, workers: int | None
) -> dict:
    """Score and write `<run>/eval/<split>/`: metrics.json, per_clip.parquet and, with frames, sheet.png.

    With neither checkpoint nor baseline the newest run is scored. Returns what metrics.json holds: the first protocol's
    figures at the top, all protocols' under `protocols`. The baseline `centre` needs the manifest alone. Raises
    AvpipeError for a wrong combination or missing input.
    """
    if checkpoint is not None and baseline is not None:
        raise AvpipeError("give either --checkpoint RUN or --baseline centre|random-init")
    names = ev.choose_protocols(protocol)
    check_split_name(split)
    if baseline == "centre":
        clips, shards = ev.clips_of_manifest(root.manifest, split), None
        maps, run = ev.centre_maps(clips), root.runs / "baseline-centre"
    else:
        shards = open_shards(root.shards / split)
        clips = ev.clips_of_shards(shards)
        maps, run = _network_maps(root, shards, clips, checkpoint, baseline, workers)
    kept: dict[str, list[np.ndarray]] = {}
    scores = ev.evaluate(clips, _keeping(maps, kept), names)
    summaries = [score.summary() for score in scores]
    folder = run / "eval" / split
    result = {
        "split": split,
        "model": run.name,
        "clips_listed": clips.listed,
        "listed_sha256": clips.listed_sha256,
        **summaries[0],
        "protocols": {summary["protocol"]: summary for summary in summaries},
        "per_clip": str(folder / "per_clip.parquet"),
        "sheet": str(folder / "sheet.png") if shards else None,
    }
    ev.write_per_clip(scores, folder / "per_clip.parquet")
    if shards:
        from train.sheet import write_sheet

        title = f"{run.name} on {split}: cIoU@0.5 {result['ciou']:.3f} ({scores[0].protocol}), best to worst"
        frame = ev.PROTOCOLS[scores[0].protocol].frame
        write_sheet(scores[0], kept[frame], clips, shards, title, folder / "sheet.png")
    with published(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _network_maps(root: Root, shards: Shards, clips: ev.TestClips, checkpoint, baseline, workers: int | None):
    """Maps of a trained or a fresh network, and the folder of its run."""
    from train.models import choose_model
    from train.predict import network_maps

    model = choose_model(root, checkpoint, baseline)
    model.check_feature(shards)
    loaders = default_workers() - 1 if workers is None else workers
    return network_maps(model.network, shards, clips, model.feature, model.image_px, loaders), model.run


def _keeping(maps: Callable[[str], Iterator[np.ndarray]], kept: dict[str, list[np.ndarray]]):
    """The same maps, remembered for the pictures."""

    def keep(frame: str) -> Iterator[np.ndarray]:
        kept[frame] = []
        for map_HW in maps(frame):
            kept[frame].append(map_HW)
            yield map_HW

    return keep


def table(result: dict) -> str:
    """A result as text: each number between its floor and its ceiling."""
    lines = [
        f"{result['model']} on {result['split']}: {result['clips_scored']:,} of {result['clips_listed']:,} listed "
        f"clips scored, {result['clips_without_box']} without a usable box (list {result['listed_sha256'][:12]})",
        f"{'protocol':10} {'cIoU@0.5':>9} {'floor':>6} {'ceiling':>8} "
        f"{'AUC':>7} {'floor':>6} {'ceiling':>8} {'pointing':>9}",
    ]
    for name, score in result["protocols"].items():
        floor, ceiling = score["floor"], score["ceiling"]
        lines.append(
            f"{name:10} {score['ciou']:9.3f} {floor['ciou']:6.3f} {ceiling['ciou']:8.3f} "
            f"{score['auc']:7.3f} {floor['auc']:6.3f} {ceiling['auc']:8.3f} {score['pointing']:9.3f}"
        )
    lines.append("floor: a disc in the middle of the frame; ceiling: the best that any map can reach on these boxes")
    if result["sheet"]:
        lines.append(f"picture: {result['sheet']}")
    return "\n".join(lines)
