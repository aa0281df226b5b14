"""`avpipe import` and `avpipe export`: other people's layouts in and out."""

from pathlib import Path
from typing import Annotated

import typer

from avpipe.pipeline.cli.common import (
    ExecutorName,
    Features,
    Json,
    RayAddress,
    Split,
    Workers,
    failure_parts,
    report_skipped,
    run_stage,
    say,
)
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root, check_outside, is_within

exchange_app = typer.Typer()


@exchange_app.command("import", epilog="Example: avpipe import my-mirror/vggsound.tar.gz")
def import_(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Folder or tars of <id>_<start>.mp4, or a folder with frames/ and audio/.")
    ],
    features: Features = "logspec",
    workers: Workers = None,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    as_json: Json = False,
):
    """Import existing data: clips as if downloaded, frames and sounds as if extracted."""
    from avpipe.pipeline.exchange.import_clips import import_clips
    from avpipe.pipeline.exchange.import_frames import find_layout, import_frames
    from avpipe.pipeline.features.settings import ExtractSettings
    from avpipe.pipeline.work.open import open_executor

    root: Root = context.obj
    if is_within(source, root.clips):
        raise AvpipeError(f"{source} is where this root keeps its clips; they are imported already")
    if find_layout(source):
        settings = ExtractSettings(features=tuple(features.split(",")))
        place = open_executor(executor, workers, ray_address)
        plan, result = run_stage("import", lambda **hooks: import_frames(root, source, settings, place, **hooks))
    else:
        plan, result = run_stage("import", lambda **hooks: import_clips(root, source, **hooks))
    parts = [f"{result['done']} imported", f"{result['finished']} already there", *failure_parts(result)]
    parts += [f"{result[name]:,} {text}" for name, text in NOT_IMPORTED.items() if result.get(name)]
    say(result, f"{source}: {' · '.join(parts)}", as_json)
    report_skipped(result, plan.skipped, getattr(plan, "damage", []))


NOT_IMPORTED = {
    "not_listed": "not in the manifest",
    "skipped": "skipped",
    "frames_alone": "frames without a sound",
    "sounds_alone": "sounds without a frame",
}


@exchange_app.command(epilog="Example: avpipe export --split vggss --format hdf5 sspl-data")
def export(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="New folder; for csv and txt the folder of <split>.csv or .txt.")],
    split: Split,
    form: Annotated[
        str, typer.Option("--format", help="folders, hdf5, coco, csv, txt, ssl-tie-train or ssl-tie-test.")
    ],
    features: Features = "logspec",
    as_json: Json = False,
):
    """Write a split in a layout that other code reads; clips that are not extracted are listed in missing.csv."""
    from dataclasses import asdict

    from avpipe.pipeline.core.progress import ProgressLine
    from avpipe.pipeline.exchange.export import export as run
    from avpipe.pipeline.exchange.export_lists import FORMATS, export_list
    from avpipe.pipeline.features.settings import ExtractSettings
    from avpipe.pipeline.manifest.tables import Manifest

    root: Root = context.obj
    check_outside(out, root)
    if form in FORMATS:
        path = export_list(Manifest.open(root.manifest), split, form, out)
        say({"split": split, "format": form, "file": path}, str(path), as_json)
        return
    settings = ExtractSettings(features=tuple(features.split(",")))
    with ProgressLine("export", 0, "samples") as line:
        summary = run(root, split, settings, form, out, on_plan=line.set_total, on_sample=line.advance)
    counts = "".join(f", {count:,} {name.replace('_', ' ')}" for name, count in summary.counts.items())
    text = f"{out}: {summary.exported:,} of {summary.listed:,} listed clips{counts}"
    say(asdict(summary), f"{text}; the others are in missing.csv" if summary.missing else text, as_json)
