"""One evaluation from the command line to its files: who predicts, on which clips, and what is written and printed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import AvpipeError
from pipeline.layout import Root, check_split_name, published
from pipeline.parts import default_workers
from train import evaluate as ev
from train.shards import Shards, open_shards


def run_eval(
    root: Root,
    split: str,
    checkpoint: str | None,
    baseline: str | None,
    protocol: str,
    workers: int | None,
    format_name: str | None = None,
    weights: Path | None = None,
) -> dict:
    """Score and write `<run>/eval/<split>/`: metrics.json, per_clip.parquet and, with frames, sheet.png.

    With neither checkpoint nor baseline the newest run is scored. `format_name` says whose published checkpoint it is,
    `weights` where the baseline `object` has its ImageNet weights from. Returns what metrics.json holds: the first
    protocol's figures at the top, all protocols' under `protocols`, for a published checkpoint how it fitted under
    `checkpoint`. The baseline `centre` needs the manifest alone. Raises AvpipeError for a wrong combination or missing
    input.
    """
    if checkpoint is not None and baseline is not None:
        raise AvpipeError("give either --checkpoint RUN or --baseline centre|object|random-init")
    if format_name is not None and checkpoint is None:
        raise AvpipeError("--format says whose checkpoint --checkpoint is; give that file, too")
    if weights is not None and baseline != "object":
        raise AvpipeError("--weights names the ImageNet weights of --baseline object; nothing else here reads them")
    names = ev.choose_protocols(protocol)
    check_split_name(split)
    if baseline == "centre":
        clips, shards = ev.clips_of_manifest(root.manifest, split), None
        maps, run, match = ev.centre_maps(clips), root.runs / "baseline-centre", None
    else:
        shards = open_shards(root.shards / split)
        clips = ev.clips_of_shards(shards)
        maps, run, match = _network_maps(root, shards, clips, workers, checkpoint, baseline, format_name, weights)
    kept: dict[str, list[np.ndarray]] = {}
    scores = ev.evaluate(clips, _keeping(maps, kept), names)
    summaries = [score.summary() for score in scores]
    folder = run / "eval" / split
    result = {
        "split": split,
        "model": run.name,
        **({"checkpoint": match} if match else {}),
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


def _network_maps(root: Root, shards: Shards, clips: ev.TestClips, workers: int | None, *choice):
    """Maps of a trained or a fresh network, the folder of its run, and how a published checkpoint fitted."""
    from train.models import choose_model
    from train.predict import network_maps

    model = choose_model(root, shards, *choice)
    loaders = default_workers() - 1 if workers is None else workers
    maps = network_maps(model.network, shards, clips, model.feature, model.image_px, loaders)
    return maps, model.run, model.checkpoint


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
        f"{'protocol':13} {'cIoU@0.5':>8}  {'95 % interval':13} {'floor':>6} {'ceiling':>8} "
        f"{'AUC':>8} {'floor':>6} {'ceiling':>8} {'pointing':>9}",
    ]
    for name, score in result["protocols"].items():
        floor, ceiling, (low, high) = score["floor"], score["ceiling"], score["interval"]["ciou"]
        lines.append(
            f"{name:13} {score['ciou']:8.3f}  {f'{low:.3f}–{high:.3f}':13} {floor['ciou']:6.3f} {ceiling['ciou']:8.3f} "
            f"{score['auc']:8.3f} {floor['auc']:6.3f} {ceiling['auc']:8.3f} {score['pointing']:9.3f}"
        )
    lines.append("floor: a disc in the middle of the frame; ceiling: the best that any map can reach on these boxes")
    lines += _detection_table(result["protocols"])
    if result["sheet"]:
        lines.append(f"picture: {result['sheet']}")
    return "\n".join(lines)


def _detection_table(protocols: dict[str, dict]) -> list[str]:
    """Lines on how well negatives are told from the rest, where there are any."""
    rows = [(name, score["negatives"], score["slavc"]) for name, score in protocols.items() if "slavc" in score]
    lines = [f"{'with negatives':14} {'AP':>7} {'max-F1':>7} {'LocAcc':>7}"] if rows else []
    for name, negatives, found in rows:
        for way, values in found.items():
            shown = [values[key] for key in ("ap", "max_f1", "loc_acc")]
            numbers = " ".join(f"{float('nan') if value is None else value:7.3f}" for value in shown)
            lines.append(f"{name:14} {numbers}  {way}, {negatives:,} negatives")
    return lines
