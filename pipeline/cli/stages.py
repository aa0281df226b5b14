"""The stages' commands. A stage is imported only when its command runs, so that `avpipe --help` answers at once."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from avpipe.pipeline.cli.common import (
    AnySplit,
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
from avpipe.pipeline.cli.exchange import exchange_app
from avpipe.pipeline.cli.inspect import status_app
from avpipe.pipeline.cli.manifest import manifest_app
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root, check_outside

log = logging.getLogger(__name__)
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes 0.2 s, rich panels 0.6 s
    help="From a list of YouTube ids to a trained, honestly measured sound-localisation model.",
    epilog="Example: avpipe manifest build && avpipe download --split vggss && avpipe extract --split vggss",
)
app.add_typer(manifest_app, name="manifest")
app.add_typer(status_app)  # without a name, so its commands are top-level


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

    from avpipe.pipeline.core.progress import ProgressLine
    from avpipe.pipeline.synth.corpus import make_corpus
    from avpipe.pipeline.work.base import default_workers

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
    retry: Annotated[bool, typer.Option("--retry", help="Retry clips that failed for a transient reason.")] = False,
    retry_permanent: Annotated[
        bool, typer.Option("--retry-permanent", help="Retry all failed clips, permanent failures included.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Allow redirects to other hosts; YouTube's are allowed anyway.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Downloads at a time; more than one gets addresses blocked.")] = 1,
    cookies: Annotated[str | None, typer.Option(help="yt-dlp's: file of cookies in Netscape format.")] = None,
    cookies_from_browser: Annotated[str | None, typer.Option(help="yt-dlp's: browser to take cookies from.")] = None,
    proxy: Annotated[str | None, typer.Option(help="yt-dlp's: address of a proxy.")] = None,
    extractor_args: Annotated[str | None, typer.Option(help="yt-dlp's: e.g. youtube:player_client=web.")] = None,
    limit_rate: Annotated[str | None, typer.Option(help="yt-dlp's: bytes per second, e.g. 500K.")] = None,
    as_json: Json = False,
):
    """Fetch clips into <root>/clips; every clip tried has a row in the ledger."""
    from avpipe.pipeline.download.access import access_parameters
    from avpipe.pipeline.download.archive_source import ArchiveSource
    from avpipe.pipeline.download.source import open_source
    from avpipe.pipeline.download.stage import download as run
    from avpipe.pipeline.manifest.tables import Manifest

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
    _, result = run_stage("download", lambda **hooks: run(root, clips, given, jobs, **retries, **hooks), notes=True)
    result = {"split": split, "listed": len(clips)} | result
    parts = [f"{result['done']} fetched", f"{result['finished']} already there", *failure_parts(result)]
    parts += [f"{result['not_offered']} not in this source"] if result["not_offered"] else []
    say(result, f"{root.clips}: {len(clips):,} listed · {' · '.join(parts)}", as_json)
    skipped, damage = given.skipped if given.local else [], given.damage if isinstance(given, ArchiveSource) else []
    report_skipped(result, skipped, damage)


@app.command(epilog="Example: avpipe extract --split vggss --features logspec")
def extract(
    context: typer.Context,
    split: AnySplit = None,
    features: Features = "logspec",
    workers: Workers = None,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    retry: Annotated[bool, typer.Option("--retry", help="Retry clips that failed for a transient reason.")] = False,
    as_json: Json = False,
):
    """Turn downloaded clips into frames, audio and features in <root>/cache."""
    from avpipe.pipeline.extract.stage import extract as run
    from avpipe.pipeline.features.settings import ExtractSettings
    from avpipe.pipeline.manifest.tables import Manifest
    from avpipe.pipeline.work.open import open_executor

    root: Root = context.obj
    settings = ExtractSettings(features=tuple(features.split(",")))
    ids = Manifest.open(root.manifest).ids(split)
    place = open_executor(executor, workers, ray_address)
    _, result = run_stage("extract", lambda **hooks: run(root, ids, settings, workers=place, retry=retry, **hooks))
    result = {"split": split, "listed": len(ids), "cache": root.cache / settings.name} | result
    parts = [f"{result['done']} extracted", f"{result['finished']} already there", *failure_parts(result)]
    parts += [f"{result['not_downloaded']:,} not downloaded"] if result["not_downloaded"] else []
    say(result, f"{result['cache']}: {' · '.join(parts)}", as_json)
    _check_any_done(result, "extracted")


def _check_any_done(result: dict, what: str) -> None:
    """Raise AvpipeError if every clip failed: the cause is then hardly the clips."""
    if result["failures"] and not result["done"] and not result["finished"]:
        first = result["failures"][0]
        raise AvpipeError(
            f"none of {len(result['failures']):,} clips could be {what}; the first, {first['clip_id']}: "
            f"{first['reason']} ({first['detail']})"
        )


@app.command(epilog="Example: avpipe shard --split vggss")
def shard(
    context: typer.Context,
    split: Split,
    features: Features = "logspec",
    seed: Annotated[int, typer.Option(help="Seed of the order in which clips are written.")] = 0,
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

    from avpipe.pipeline.core.progress import ProgressLine
    from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
    from avpipe.pipeline.shards.write import shard as run
    from avpipe.pipeline.work.open import open_executor

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
    from avpipe.pipeline.core.progress import ProgressLine
    from avpipe.pipeline.shards.send import send_shards

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
    """Compare shards with their index, byte for byte; exit with 1 if anything is wrong."""
    from dataclasses import asdict

    from avpipe.pipeline.core.progress import ProgressLine
    from avpipe.pipeline.shards.verify import verify as run
    from avpipe.pipeline.work.open import open_executor

    with ProgressLine("verify", 0, "samples") as line:
        report = run(folder, open_executor(executor, workers, ray_address), line.set_total, line.advance)
    verdict = ", ".join(f"{count} {kind}" for kind, count in report.counts().items()) or "nothing wrong"
    lines = [f"  {p.kind:10} {p.shard} {p.clip_id} ({p.detail})" for p in report.problems]
    text = f"{folder}: {report.samples:,} of {report.listed:,} listed clips in {report.shards} shards: {verdict}"
    say(asdict(report) | {"counts": report.counts()}, "\n".join([text, *lines]), as_json)
    if report.problems:
        log.error("%s is not as it was written; remove it and run `avpipe shard` again", folder)
        raise typer.Exit(1)


app.add_typer(exchange_app)
