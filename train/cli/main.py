"""The `avpipe` command: the stages of the pipeline, training and evaluation. Imports no torch until a command runs."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from avpipe.pipeline.cli.command import run
from avpipe.pipeline.cli.common import Split
from avpipe.pipeline.cli.stages import Json, Workers, app, say
from avpipe.pipeline.core.paths import Root
from avpipe.train.cli.results import Checkpoint, FormatName, require_training, results_app

ShardsOption = Annotated[
    str, typer.Option("--shards", help="Folder of shards, or some of its tars: 'DIR/x-{000000..000143}.tar'.")
]
MethodOption = Annotated[
    str | None,
    typer.Option("--method", help="lvs, ez-vsl, marginnce, ssl-tie or sspl.  [default: the recipe's, or lvs]"),
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="A named recipe.  [default: the method's published one]")
]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe: key=value.")]


app.add_typer(results_app)


@app.command(epilog="Example: avpipe train --shards data/shards/ssltie_144k --method lvs --set batch_size=128")
def train(
    context: typer.Context,
    shards: ShardsOption,
    method: MethodOption = None,
    recipe: RecipeOption = None,
    changes: Changes = None,
    init: Annotated[str | None, typer.Option(help="Start from `imagenet` or `random` weights.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File with the ImageNet weights, or folder with all published weights needed.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.  [default: <recipe>-<split>]")] = None,
    select_on: Annotated[
        str | None,
        typer.Option(help="Shards with boxes; the best epoch is the one with the highest cIoU on them."),
    ] = None,
    forbid_leak: Annotated[
        bool, typer.Option("--forbid-leak", help="Refuse to train on clips or videos of a test split.")
    ] = False,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Also log to Weights & Biases.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Threads that load data.  [default: cores - 1]")] = None,
    cache_gb: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Gigabytes of remote shards (s3://…) to cache on this machine.  [default: half of the free disk]",
        ),
    ] = None,
    as_json: Json = False,
):
    """Train a model; rerun the command to resume a run that was killed.

    Under `torchrun -m avpipe.train.cli.main train …` several processes and devices share each batch.
    """
    from dataclasses import asdict

    from avpipe.pipeline.work.base import default_workers

    require_training()
    from avpipe.train.core.distributed import is_first
    from avpipe.train.data.open import open_shards
    from avpipe.train.data.remote import DiskBudget
    from avpipe.train.evaluation.leakage import leakage_into_tests, warn_or_refuse
    from avpipe.train.models.recipes import choose_recipe, summary
    from avpipe.train.run.fit import fit

    root: Root = context.obj
    recipe, chosen = choose_recipe(recipe, method, [*(changes or []), *([f"init={init}"] if init else [])])
    budget = DiskBudget.below(root.remote, cache_gb)
    data = open_shards(shards, budget)
    run = root.runs / (name or f"{recipe}-{data.split}")
    loaders = max(1, default_workers() - 1) if workers is None else workers
    select_shards = open_shards(select_on, budget) if select_on else None
    found = warn_or_refuse(data.split, leakage_into_tests(root.manifest, data.clip_ids), forbid_leak)
    if is_first():
        print(f"avpipe: {summary(chosen)}" + (f"\navpipe: {found}" if found else ""), file=sys.stderr)
    trained = fit(chosen, data, run, loaders, weights, select_shards, wandb)
    if is_first():
        say(asdict(trained) | {"recipe": chosen.record()}, _summary(trained), as_json)


def _summary(trained) -> str:
    if trained.loss is None:
        return f"{trained.run}: all {trained.steps} steps had been done before"
    facts = [f"{trained.steps} steps" + (f", resumed at step {trained.resumed_at}" if trained.resumed_at else "")]
    facts += [f"loss {trained.loss:.3f}", f"{trained.clips_per_s:.1f} clips/s"]
    facts += [f"waited {trained.data_wait:.1%} of the time for data"]
    if trained.best:
        facts += [f"best epoch {trained.best['epoch']} ({trained.best['measure']} {trained.best['value']:.4f})"]
    if trained.stopped_early:
        facts += ["stopped early"]
    return f"{trained.run}: {' · '.join(facts)}"


@app.command("eval", epilog="Example: avpipe eval --split vggss --checkpoint lvs-ssltie_144k --protocol all")
def evaluate(
    context: typer.Context,
    split: Split,
    only: Annotated[
        str | None, typer.Option(help="Score only the clips of a list: a file with one id per line, or another split.")
    ] = None,
    checkpoint: Checkpoint = None,
    format_name: FormatName = None,
    baseline: Annotated[
        str | None, typer.Option(help="Instead of a checkpoint: `centre`, `object` or `random-init`.")
    ] = None,
    object_guided: Annotated[
        bool, typer.Option("--object-guided", help="Blend the maps with those of an ImageNet network (EZ-VSL's OGL).")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="File or folder with the ImageNet weights, for `object` and --object-guided.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="avpipe, lvs, ssl-tie, ez-vsl, ez-vsl-train, sspl, slavc, slavc-median, or all.")
    ] = "avpipe",
    forbid_leak: Annotated[
        bool, typer.Option("--forbid-leak", help="Refuse a checkpoint that was trained on clips of the split.")
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
):
    """Score a model or a baseline on a split's boxes, with floor, ceiling and coverage."""
    require_training()
    from avpipe.train.evaluation.run import Request, UnsavedError, run_eval
    from avpipe.train.evaluation.table import table

    root: Root = context.obj
    request = Request(
        split=split,
        only=only,
        checkpoint=checkpoint,
        format_name=format_name,
        baseline=baseline,
        object_guided=object_guided,
        weights=weights,
        protocol=protocol,
        forbid_leak=forbid_leak,
        workers=workers,
    )
    try:
        result = run_eval(root, request)
    except UnsavedError as error:
        say(error.result, "" if as_json else table(error.result), as_json)
        raise
    say(result, "" if as_json else table(result), as_json)


@app.command(epilog="Example: avpipe bench --shards data/shards/ssltie_144k --method marginnce")
def bench(
    shards: ShardsOption,
    method: MethodOption = None,
    recipe: RecipeOption = None,
    changes: Changes = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each measurement takes.")] = 5.0,
    as_json: Json = False,
):
    """Measure reading, loading and training steps on your shards, and find the bottleneck of training."""
    require_training()
    from avpipe.train.data.open import open_shards
    from avpipe.train.models.recipes import choose_recipe, summary
    from avpipe.train.run.bench import bench as run
    from avpipe.train.run.bench import record, table

    chosen = choose_recipe(recipe, method, changes or [])[1]
    print(f"avpipe: {summary(chosen)}", file=sys.stderr)
    figures, verdict = run(chosen, open_shards(shards), seconds)
    say(record(figures, verdict) | {"recipe": chosen.record()}, "" if as_json else table(figures, verdict), as_json)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    run(app)


if __name__ == "__main__":
    main()
