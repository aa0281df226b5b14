"""The stages' commands. A stage is imported only when its command runs, so that `avpipe --help` answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli_manifest import Features, Json, Workers, manifest_app, say
from pipeline.cli_status import status_app
from pipeline.errors import AvpipeError
from pipeline.layout import Root, check_outside, is_within

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes 0.2 s, rich panels 0.6 s
    help="From a list of YouTube ids to a trained, honestly measured sound-localisation model.",
    epilog="Example: avpipe manifest build && avpipe download --split vggss && avpipe extract --split vggss",
)
app.add_typer(manifest_app, name="manifest")
app.add_typer(status_app)  # without a name its commands stand beside the others

Split = Annotated[str, typer.Option(help="Name of a split; `avpipe manifest show` lists them.")]
AnySplit = Annotated[str | None, typer.Option(help="Name of a split.  [default: every clip of the manifest]")]

ExecutorName = Annotated[str, typer.Option("--executor", help="Where to work: `local` or `ray`.")]
RayAddress = Annotated[
    str | None, typer.Option(help="Host:port of a Ray cluster.  [default: start one on this machine]")
]


@app.callback()
def _options(
    context: typer.Context,
    root: Annotated[
        Path, typer.Option(envvar="AVPIPE_ROOT", help="Folder that holds lists, clips, shards, runs.")
    ] = Path("data"),
):
    context.obj = Root(root)


@app.command(epilog="Example: avpipe synth demo/source --clips 500")
def synth(
    context: typer.Context,
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

    check_outside(out, context.obj)
    with ProgressLine("synth", clips) as line:
        summary = make_corpus(
            out, clips=clips, classes=classes, seed=seed, workers=workers or default_workers(), on_done=line.advance
        )
    say(
        asdict(summary),
        f"{out}: {summary.train} training and {summary.test} test clips of {summary.classes} classes",
        as_json,
    )


@app.command(epilog="Example: avpipe download --split vggss --from my-clips")
def download(
    context: typer.Context,
    split: AnySplit = None,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="`youtube`, a folder or archive (tar, zip) of <clip_id>.mp4, an address with {clip_id} or "
            "{youtube_id}, or a .txt or .csv of lines `<clip_id> <address>`.",
        ),
    ] = "youtube",
    retry: Annotated[bool, typer.Option("--retry", help="Try failed clips again that can still be won.")] = False,
    retry_permanent: Annotated[
        bool, typer.Option("--retry-permanent", help="Try all failed clips again, those that count as lost, too.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Let an address lead to other hosts; YouTube's may anyway.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Downloads at a time; more than one gets addresses blocked.")] = 1,
    cookies: Annotated[str | None, typer.Option(help="yt-dlp's: file of cookies in Netscape format.")] = None,
    cookies_from_browser: Annotated[str | None, typer.Option(help="yt-dlp's: browser to take cookies from.")] = None,
    proxy: Annotated[str | None, typer.Option(help="yt-dlp's: address of a proxy.")] = None,
    extractor_args: Annotated[str | None, typer.Option(help="yt-dlp's: e.g. youtube:player_client=web.")] = None,
    limit_rate: Annotated[str | None, typer.Option(help="yt-dlp's: bytes per second, e.g. 500K.")] = None,
    as_json: Json = False,
):
    """Fetch clips into <root>/clips; every clip that was tried has a row in the ledger."""
    from pipeline.download import download as run
    from pipeline.manifest import Manifest
    from pipeline.sources.access import access_parameters
    from pipeline.sources.archives import ArchiveSource
    from pipeline.sources.source import open_source

    root: Root = context.obj
    manifest = Manifest.open(root.manifest)
    clips = manifest.clips(manifest.ids(split))
    access = access_parameters(
        cookies=cookies,
        cookies_from_browser=cookies_from_browser,
        proxy=proxy,
        extractor_args=extractor_args,
        limit_rate=limit_rate,
    )
    given = open_source(source, access, follow)
    retries = {"retry": retry or retry_permanent, "retry_permanent": retry_permanent}
    _, result = _watch("download", lambda **hooks: run(root, clips, given, jobs=jobs, **retries, **hooks), notes=True)
    result = {"split": split, "listed": len(clips)} | result
    parts = [f"{result['done']} fetched", f"{result['finished']} there before", *_failure_parts(result)]
    parts += [f"{result['not_offered']} not in this source"] if result["not_offered"] else []
    say(result, f"{root.clips}: {len(clips):,} listed · {' · '.join(parts)}", as_json)
    _end(result, given.skipped if given.local else [], given.damage if isinstance(given, ArchiveSource) else [])


@app.command(epilog="Example: avpipe extract --split vggss --features logspec")
def extract(
    context: typer.Context,
    split: AnySplit = None,
    features: Features = "logspec",
    workers: Workers = None,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed clips again that can still be won.")] = False,
    as_json: Json = False,
):
    """Turn downloaded clips into frames, audio and features in <root>/cache."""
    from pipeline.executors import open_executor
    from pipeline.extract import extract as run
    from pipeline.manifest import Manifest
    from pipeline.settings import ExtractSettings

    root: Root = context.obj
    settings = ExtractSettings(features=tuple(features.split(",")))
    ids = Manifest.open(root.manifest).ids(split)
    place = open_executor(executor, workers, ray_address)
    _, result = _watch("extract", lambda **hooks: run(root, ids, settings, workers=place, retry=retry, **hooks))
    result = {"split": split, "listed": len(ids), "cache": root.cache / settings.name} | result
    parts = [f"{result['done']} extracted", f"{result['finished']} there before", *_failure_parts(result)]
    parts += [f"{result['not_downloaded']:,} not downloaded"] if result["not_downloaded"] else []
    say(result, f"{result['cache']}: {' · '.join(parts)}", as_json)
    _check_any_done(result, "extracted")


def _check_any_done(result: dict, what: str) -> None:
    """Raise AvpipeError where every clip that there is has failed: then something is wrong with more than a clip."""
    if result["failures"] and not result["done"] and not result["finished"]:
        first = result["failures"][0]
        raise AvpipeError(
            f"not one of {len(result['failures']):,} clips could be {what}; the first, {first['clip_id']}: "
            f"{first['reason']} ({first['detail']})"
        )


def _watch(what: str, run, notes: bool = False) -> tuple[Any, dict]:
    """Run a stage under a progress line; returns its plan, and the plan's counts with its outcomes by reason.

    With `notes` the plan is printed before the start, and what the stage tells by `on_note` stands in the line.
    """
    from dataclasses import fields

    from pipeline.ledger import count_reasons
    from pipeline.progress import ProgressLine

    outcomes = []
    with ProgressLine(what, 0) as line:

        def on_outcome(some):
            outcomes.extend(some)
            line.advance(len(some), count_reasons(some))

        def on_plan(plan):
            line.set_total(len(plan))
            if notes and len(plan):
                print(f"{what}: {plan}", file=sys.stderr, flush=True)

        hooks = {"on_note": lambda note: line.advance(0, note=note)} if notes else {}
        plan = run(on_plan=on_plan, on_outcome=on_outcome, **hooks)
    values = {f.name: getattr(plan, f.name) for f in fields(plan)}
    counts = {name: len(v) if isinstance(v, list) else v for name, v in values.items()}
    failures = [{"clip_id": o.clip_id, "reason": o.reason, "detail": o.detail} for o in outcomes if not o.done]
    done = len(outcomes) - len(failures)
    return plan, counts | {"done": done, "failed": count_reasons(outcomes), "failures": failures}


def _failure_parts(result: dict) -> list[str]:
    parts = [f"{count} failed: {reason}" for reason, count in result["failed"].items()]
    return parts + ([f"{result['failed_before']} failed before"] if result.get("failed_before") else [])


@app.command(epilog="Example: avpipe shard --split vggss")
def shard(
    context: typer.Context,
    split: Split,
    features: Features = "logspec",
    seed: Annotated[int, typer.Option(help="Of the order in which clips are written.")] = 0,
    to: Annotated[
        str | None, typer.Option(help="Also copy the shards to <address>/<split>: s3://, gs://, a folder, ….")
    ] = None,
    workers: Workers = None,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    as_json: Json = False,
):
    """Pack a split's samples as WebDataset tars with an index into <root>/shards/<split>."""
    from dataclasses import asdict

    from pipeline.executors import open_executor
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
            open_executor(executor, workers, ray_address),
            on_plan=line.set_total,
            on_shard=line.advance,
        )
    text = (
        f"{summary.folder}: {summary.samples:,} of {summary.listed:,} listed clips in {summary.shards} shards, "
        f"{summary.bytes / 1e6:.1f} MB ({summary.written} shards written now)"
    )
    value = asdict(summary)
    if to is not None:
        sent = _send(summary, to)
        value["sent"] = asdict(sent)
        text += f"\n{sent.address}: {sent.files} files copied now, {sent.bytes / 1e6:.1f} MB"
    say(value, text, as_json)


def _send(summary, to: str):
    from pipeline.progress import ProgressLine
    from pipeline.remote import send_shards

    with ProgressLine("send", round(summary.bytes / 1e6), "MB") as line:
        return send_shards(summary.folder, to, on_file=lambda size: line.advance(round(size / 1e6)))


@app.command(epilog="Example: avpipe verify data/shards/vggss")
def verify(
    folder: Annotated[str, typer.Argument(help="Folder that `avpipe shard` wrote, or the address it was copied to.")],
    workers: Workers = None,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    as_json: Json = False,
):
    """Compare shards with their index, byte for byte; ends with code 1 if anything is wrong."""
    from dataclasses import asdict

    from pipeline.executors import open_executor
    from pipeline.progress import ProgressLine
    from pipeline.verify import verify as run

    with ProgressLine("verify", 0, "samples") as line:
        report = run(folder, open_executor(executor, workers, ray_address), line.set_total, line.advance)
    verdict = ", ".join(f"{count} {kind}" for kind, count in report.counts().items()) or "nothing wrong"
    lines = [f"  {p.kind:10} {p.shard} {p.clip_id} ({p.detail})" for p in report.problems]
    text = f"{folder}: {report.samples:,} of {report.listed:,} listed clips in {report.shards} shards: {verdict}"
    say(asdict(report) | {"counts": report.counts()}, "\n".join([text, *lines]), as_json)
    if report.problems:
        print(f"avpipe: {folder} is not as it was written; remove it and run `avpipe shard` again", file=sys.stderr)
        raise typer.Exit(1)


@app.command("import", epilog="Example: avpipe import my-mirror/vggsound.tar.gz")
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
    """Take in what somebody else has: clips as if downloaded, frames and sounds as if extracted."""
    from pipeline.exchange.import_clips import import_clips
    from pipeline.exchange.import_frames import find_layout, import_frames
    from pipeline.executors import open_executor
    from pipeline.settings import ExtractSettings

    root: Root = context.obj
    if is_within(source, root.clips):
        raise AvpipeError(f"{source} is where this root keeps its clips; they are taken in already")
    if find_layout(source):
        settings = ExtractSettings(features=tuple(features.split(",")))
        place = open_executor(executor, workers, ray_address)
        plan, result = _watch("import", lambda **hooks: import_frames(root, source, settings, place, **hooks))
    else:
        plan, result = _watch("import", lambda **hooks: import_clips(root, source, **hooks))
    parts = [f"{result['done']} taken in", f"{result['finished']} there before", *_failure_parts(result)]
    parts += [f"{result[name]:,} {text}" for name, text in PASSED_BY.items() if result.get(name)]
    say(result, f"{source}: {' · '.join(parts)}", as_json)
    _end(result, plan.skipped, getattr(plan, "damage", []))


def _end(result: dict, skipped: list[str], damage: list[str]) -> None:
    """Name what was passed by or found damaged; exit code 1 for damage, and where nothing came of all that was tried.

    Where some clips are there, failures are no reason to stop what comes after this command.
    """
    from pipeline.progress import printable

    if skipped:
        more = f", and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
        print(f"avpipe: passed by: {printable('; '.join(skipped[:NAMED]))}{more}", file=sys.stderr)
    for sentence in damage:
        print(f"avpipe: {printable(sentence)}", file=sys.stderr)
    nothing = result["failed"] and not result["done"] + result["finished"]
    if nothing:
        first = result["failures"][0]
        print(
            f"avpipe: all {len(result['failures']):,} clips failed; the first, {first['clip_id']}: "
            f"{first['reason']}: {printable(first['detail'])}",
            file=sys.stderr,
        )
    if damage or nothing:
        raise typer.Exit(1)


# Files passed by that are named; the others are counted.
NAMED = 3
PASSED_BY = {
    "not_listed": "not in the manifest",
    "skipped": "passed by",
    "frames_alone": "frames without a sound",
    "sounds_alone": "sounds without a frame",
}


@app.command(epilog="Example: avpipe export --split vggss --format hdf5 sspl-data")
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
    """Write a split in a layout that other code reads; clips that are not extracted are named in missing.csv."""
    from dataclasses import asdict

    from pipeline.exchange.export import export as run
    from pipeline.exchange.export_lists import FORMATS, export_list
    from pipeline.manifest import Manifest
    from pipeline.progress import ProgressLine
    from pipeline.settings import ExtractSettings

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
