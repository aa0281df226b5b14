"""Commands for trained models: retrieval by sound, maps over a video, reports, the papers' tables."""

from pathlib import Path
from typing import Annotated

import typer

from avpipe.pipeline.cli.common import Split
from avpipe.pipeline.cli.stages import Json, Workers, say
from avpipe.pipeline.core.errors import AvpipeError

Checkpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="A run's name or folder, or a file.  [default: the newest run]")
]
FormatName = Annotated[
    str | None,
    typer.Option("--format", help="Format of a published checkpoint: lvs, ez-vsl, ssl-tie or sspl (a file or folder)."),
]

results_app = typer.Typer()


@results_app.command(epilog="Example: avpipe retrieve --split retrieval --checkpoint ssl-tie-ssltie_seen_144k")
def retrieve(
    context: typer.Context,
    split: Split,
    checkpoint: Checkpoint = None,
    format_name: FormatName = None,
    baseline: Annotated[str | None, typer.Option(help="Instead of a checkpoint: `random-init`.")] = None,
    workers: Workers = None,
    as_json: Json = False,
):
    """Retrieve a split's sounds and frames by sound: how often the category matches, compared with chance."""
    require_training()
    from avpipe.train.evaluation.retrieval import run_retrieval
    from avpipe.train.evaluation.retrieval_table import table
    from avpipe.train.evaluation.run import UnsavedError
    from avpipe.train.models.load import ModelChoice

    try:
        choice = ModelChoice(checkpoint=checkpoint, format_name=format_name, baseline=baseline)
        result = run_retrieval(context.obj, split, choice, workers)
    except UnsavedError as error:
        say(error.result, "" if as_json else table(error.result), as_json)
        raise
    say(result, "" if as_json else table(result), as_json)


@results_app.command(
    epilog="Example: avpipe localize holiday.mp4 -o where.mp4 --checkpoint lvs-ssltie_144k --picture where.png"
)
def localize(
    context: typer.Context,
    video: Annotated[Path, typer.Argument(help="Any video with sound.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The mp4 to write: the video under its heat map.")],
    checkpoint: Checkpoint = None,
    format_name: FormatName = None,
    baseline: Annotated[str | None, typer.Option(help="Instead of a checkpoint: `object` or `random-init`.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also write eight moments as a PNG.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Also write the maps and their times as an .npz.")] = None,
    as_json: Json = False,
):
    """Show where in a video its sound comes from. The colours are scaled per video: compare only within one."""
    require_training()
    from avpipe.train.localize.video import localize as run
    from avpipe.train.models.load import ModelChoice

    choice = ModelChoice(checkpoint=checkpoint, format_name=format_name, baseline=baseline)
    result = run(context.obj, video, out, choice, picture, maps)
    low, high = result["scale"]
    text = f"{out}: {result['frames']:,} frames, {result['maps']:,} maps by {result['model']}"
    extra = "".join(f"; {path}" for path in (picture, maps) if path)
    say(result, f"{text}; colours from {low:.3f} to {high:.3f}{extra}", as_json)


@results_app.command(epilog="Example: avpipe report lvs-ssltie_144k ez-vsl-ssltie_144k --split vggss -o report.html")
def report(
    context: typer.Context,
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Names or folders; the others are compared with the first.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")],
    split: Annotated[str | None, typer.Option(help="Evaluation to show.  [default: the only one of the run]")] = None,
    clips: Annotated[
        int, typer.Option(min=0, help="Clips per group of the gallery: best, worst, random, changed.")
    ] = 12,
    weights: Annotated[
        Path | None, typer.Option(help="File or folder with the ImageNet weights, for object-guided maps.")
    ] = None,
    as_json: Json = False,
):
    """Write one HTML page about evaluated runs: scores, curves, and clips to see and hear. Works offline."""
    require_training()
    from avpipe.train.reports.html.report import listed, write_report

    result = write_report(context.obj, runs, out, split, clips, weights)
    size = f"{result['bytes'] / 1e6:.1f} MB"
    say(result, f"{out}: {listed(result['runs'])} on {result['split']}, {result['clips']} clips, {size}", as_json)


@results_app.command(epilog="Example: avpipe reproduce --paper marginnce --plan")
def reproduce(
    context: typer.Context,
    paper: Annotated[
        str | None, typer.Option(help="Only rows of lvs, sspl, ssl-tie or marginnce.  [default: all]")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Only rows about this method.  [default: all]")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what the trainings need, and what is missing.")] = False,
    run: Annotated[
        bool, typer.Option("--run", help="Train and score the rows whose shards are available; rerun to resume.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="File with the ImageNet weights, or folder with all published weights needed.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Threads that load data.  [default: cores - 1]")] = None,
    as_json: Json = False,
):
    """Show the papers' tables with our results next to theirs. Only results of actual runs are shown."""
    require_training()
    from avpipe.pipeline.work.base import default_workers
    from avpipe.train.reports.papers import execute, tables
    from avpipe.train.reports.papers.paper_rows import select
    from avpipe.train.reports.papers.reproduce import PaperRuns, compare
    from avpipe.train.reports.papers.schedule import plan as plan_runs

    if plan and run:
        raise AvpipeError("give either --plan or --run")
    paper_runs, selected = PaperRuns(context.obj), select(paper, method)
    if plan:
        planned = plan_runs(paper_runs, selected)
        say(planned, "" if as_json else tables.plan_table(planned), as_json)
        return
    loaders = max(1, default_workers() - 1) if workers is None else workers
    outcomes = execute.run(paper_runs, selected, weights, loaders) if run else None
    compared = compare(paper_runs, selected)
    text = (
        ""
        if as_json
        else "\n".join([*([tables.outcome_table(outcomes)] if run else []), tables.comparison_table(compared)])
    )
    say({"rows": compared} | ({"runs": outcomes} if run else {}), text, as_json)
    if run and execute.any_failed(outcomes):
        raise typer.Exit(1)


def require_training() -> None:
    """Raise AvpipeError with the command to install what is missing if only the pipeline is installed."""
    from importlib.util import find_spec

    if missing := [name for name in ("torch", "torchvision", "lightning_fabric", "matplotlib") if not find_spec(name)]:
        raise AvpipeError(f"this needs {missing[0]}, which is not installed; run: pip install 'avpipe[train]'")
