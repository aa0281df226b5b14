"""The stages' commands. A stage is imported only when its command runs, so that `avpipe --help` answers at once."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.layout import Root

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes 0.2 s, rich panels 0.6 s
    help="From a list of YouTube ids to a trained, honestly measured sound-localisation model.",
    epilog="Example: avpipe manifest build && avpipe download --split vggss && avpipe extract --split vggss",
)
manifest_app = typer.Typer(no_args_is_help=True, help="Which clips there should be: build the tables, show a split.")
app.add_typer(manifest_app, name="manifest")

Split = Annotated[str, typer.Option(help="Name of a split; `avpipe manifest show` lists them.")]
AnySplit = Annotated[str | None, typer.Option(help="Name of a split.  [default: every clip of the manifest]")]
Features = Annotated[str, typer.Option(help="Feature specs to compute, separated by commas.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes.  [default: one a core]", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.callback()
def _options(
    context: typer.Context,
    root: Annotated[
        Path, typer.Option(envvar="AVPIPE_ROOT", help="Folder that holds lists, clips, shards, runs.")
    ] = Path("data"),
):
    context.obj = Root(root)


def say(value: dict, text: str, as_json: bool) -> None:
    """Print a command's result: one JSON object for scripts, or a text for people."""
    print(json.dumps(value, default=str) if as_json else text, flush=True)


@app.command(epilog="Example: avpipe synth demo/source --clips 500")
def synth(
    out: Annotated[Path, typer.Argument(help="Folder for clips/ and lists/.")],
    clips: Annotated[int, typer.Option(min=2, help="Number of ten-second clips, a fifth of them for the test.")] = 500,
    classes: Annotated[int, typer.Option(help="Number of sounding classes.")] = 8,
    seed: Annotated[int, typer.Option(help="Another seed gives another corpus.")] = 0,
    workers: Workers = None,
    as_json: Json = False,
):
    """Make a corpus of real mp4 files in which the box of the sounding object is known."""
    from dataclasses import asdict

    from pipeline.parts import default_workers
    from pipeline.progress import ProgressLine
    from pipeline.synth import make_corpus

    with ProgressLine("synth", clips) as line:
        summary = make_corpus(
            out, clips=clips, classes=classes, seed=seed, workers=workers or default_workers(), on_done=line.advance
        )
    say(
        asdict(summary),
        f"{out}: {summary.train} training and {summary.test} test clips of {summary.classes} classes",
        as_json,
    )


@manifest_app.command("build", epilog="Example: avpipe manifest build --lists my-lists")
def manifest_build(
    context: typer.Context,
    lists: Annotated[
        Path | None, typer.Option(help="Folder with copies of the lists.  [default: fetch them into <root>/lists]")
    ] = None,
    accept_changed: Annotated[
        bool, typer.Option("--accept-changed", help="Use lists that differ from the published ones, and record that.")
    ] = False,
    as_json: Json = False,
):
    """Join the official lists into clips.parquet, boxes.parquet and splits.parquet."""
    from pipeline.catalogue import fetch_lists
    from pipeline.manifest import build_manifest
    from pipeline.progress import ProgressLine

    root: Root = context.obj
    if lists is None:
        lists = root.lists
        with ProgressLine("lists", 0, "lists") as line:
            fetch_lists(lists, on_list=lambda name: line.advance(note=name))
    counts = build_manifest(lists, root.manifest, accept_changed)
    splits = "\n".join(f"  {name:22} {size:>8,}" for name, size in counts["splits"].items())
    missing = f"\nnot among the lists: {', '.join(counts['lists_missing'])}" if counts["lists_missing"] else ""
    text = (
        f"{root.manifest}: {counts['clips']:,} clips, {counts['boxes']:,} boxes ({counts['boxes_unusable']} unusable)"
    )
    say(counts, f"{text}\n{splits}{missing}", as_json)


@manifest_app.command("show", epilog="Example: avpipe manifest show vggss")
def manifest_show(
    context: typer.Context,
    split: Annotated[str | None, typer.Argument(help="Name of a split.  [default: list all]")] = None,
    as_json: Json = False,
):
    """Show the sizes of all splits, or the clip ids of one."""
    from pipeline.manifest import Manifest

    manifest = Manifest.open(context.obj.manifest)
    if split is None:
        sizes = manifest.split_sizes()
        say({"splits": sizes}, "\n".join(f"{name:22} {size:>8,}" for name, size in sizes.items()), as_json)
    else:
        ids = manifest.split_ids(split)
        say({"split": split, "clips": ids}, "\n".join(ids), as_json)


@app.command(epilog="Example: avpipe download --split vggss --from my-clips")
def download(
    context: typer.Context,
    split: AnySplit = None,
    source: Annotated[
        str, typer.Option("--from", help="`youtube`, a folder of <clip_id>.mp4, or an address with {clip_id}.")
    ] = "youtube",
    retry: Annotated[bool, typer.Option("--retry", help="Try failed clips again that can still be won.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Downloads at a time; more than one gets addresses blocked.")] = 1,
    as_json: Json = False,
):
    """Fetch clips into <root>/clips; every clip that was tried has a row in the ledger."""
    from pipeline.download import download as run
    from pipeline.manifest import Manifest
    from pipeline.sources import open_source

    root: Root = context.obj
    manifest = Manifest.open(root.manifest)
    clips = manifest.clips(manifest.ids(split))
    result = _watch("download", lambda **hooks: run(root, clips, open_source(source), jobs=jobs, retry=retry, **hooks))
    result = {"split": split, "listed": len(clips)} | result
    parts = [f"{result['done']} fetched", f"{result['finished']} there before", *_failure_parts(result)]
    parts += [f"{result['not_offered']} not in this source"] if result["not_offered"] else []
    say(result, f"{root.clips}: {len(clips):,} listed · {' · '.join(parts)}", as_json)


@app.command(epilog="Example: avpipe extract --split vggss --features logspec")
def extract(
    context: typer.Context,
    split: AnySplit = None,
    features: Features = "logspec",
    workers: Workers = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed clips again that can still be won.")] = False,
    as_json: Json = False,
):
    """Turn downloaded clips into frames, audio and features in <root>/cache."""
    from pipeline.extract import extract as run
    from pipeline.manifest import Manifest
    from pipeline.parts import default_workers
    from pipeline.settings import ExtractSettings

    root: Root = context.obj
    settings = ExtractSettings(features=tuple(features.split(",")))
    ids = Manifest.open(root.manifest).ids(split)
    workers = workers or default_workers()
    result = _watch("extract", lambda **hooks: run(root, ids, settings, workers=workers, retry=retry, **hooks))
    result = {"split": split, "listed": len(ids), "cache": root.cache / settings.name} | result
    parts = [f"{result['done']} extracted", f"{result['finished']} there before", *_failure_parts(result)]
    parts += [f"{result['not_downloaded']:,} not downloaded"] if result["not_downloaded"] else []
    say(result, f"{result['cache']}: {' · '.join(parts)}", as_json)


def _watch(what: str, run) -> dict:
    """Run a stage under a progress line; returns its plan's counts and its outcomes by reason."""
    from dataclasses import fields

    from pipeline.ledger import count_reasons
    from pipeline.progress import ProgressLine

    outcomes = []
    with ProgressLine(what, 0) as line:

        def on_outcome(some):
            outcomes.extend(some)
            line.advance(len(some), count_reasons(some))

        plan = run(on_plan=lambda plan: line.set_total(len(plan)), on_outcome=on_outcome)
    counts = {f.name: v for f in fields(plan) if isinstance(v := getattr(plan, f.name), int)}
    failures = [{"clip_id": o.clip_id, "reason": o.reason, "detail": o.detail} for o in outcomes if not o.done]
    done = len(outcomes) - len(failures)
    return counts | {"done": done, "failed": count_reasons(outcomes), "failures": failures}


def _failure_parts(result: dict) -> list[str]:
    parts = [f"{count} failed: {reason}" for reason, count in result["failed"].items()]
    return parts + ([f"{result['failed_before']} failed before"] if result["failed_before"] else [])


@app.command(epilog="Example: avpipe shard --split vggss")
def shard(
    context: typer.Context,
    split: Split,
    features: Features = "logspec",
    seed: Annotated[int, typer.Option(help="Of the order in which clips are written.")] = 0,
    workers: Workers = None,
    as_json: Json = False,
):
    """Pack a split's samples as WebDataset tars with an index into <root>/shards/<split>."""
    from dataclasses import asdict

    from pipeline.parts import default_workers
    from pipeline.progress import ProgressLine
    from pipeline.settings import ExtractSettings, ShardSettings
    from pipeline.shard import shard as run

    settings = ExtractSettings(features=tuple(features.split(",")))
    with ProgressLine("shard", 0, "samples") as line:
        summary = run(
            context.obj,
            split,
            settings,
            ShardSettings(seed=seed),
            workers or default_workers(),
            on_plan=line.set_total,
            on_shard=line.advance,
        )
    text = (
        f"{summary.folder}: {summary.samples:,} of {summary.listed:,} listed clips in {summary.shards} shards, "
        f"{summary.bytes / 1e6:.1f} MB ({summary.written} shards written now)"
    )
    say(asdict(summary), text, as_json)


@app.command(epilog="Example: avpipe verify data/shards/vggss")
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder that `avpipe shard` wrote.")],
    workers: Workers = None,
    as_json: Json = False,
):
    """Compare shards with their index, byte for byte; ends with code 1 if anything is wrong."""
    from dataclasses import asdict

    from pipeline.parts import default_workers
    from pipeline.progress import ProgressLine
    from pipeline.verify import verify as run

    with ProgressLine("verify", 0, "samples") as line:
        report = run(folder, workers or default_workers(), on_plan=line.set_total, on_shard=line.advance)
    verdict = ", ".join(f"{count} {kind}" for kind, count in report.counts().items()) or "nothing wrong"
    lines = [f"  {p.kind:10} {p.shard} {p.clip_id} ({p.detail})" for p in report.problems]
    text = f"{folder}: {report.samples:,} of {report.listed:,} listed clips in {report.shards} shards: {verdict}"
    say(asdict(report) | {"counts": report.counts()}, "\n".join([text, *lines]), as_json)
    if report.problems:
        print(f"avpipe: {folder} is not as it was written; remove it and run `avpipe shard` again", file=sys.stderr)
        raise typer.Exit(1)
