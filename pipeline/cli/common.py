"""What the commands share: options, the run under a progress line, and how a result is printed."""

import json
import logging
import sys
from typing import Annotated, Any

import typer

log = logging.getLogger(__name__)

Split = Annotated[str, typer.Option(help="Name of a split; `avpipe manifest show` lists them.")]
AnySplit = Annotated[str | None, typer.Option(help="Name of a split.  [default: every clip of the manifest]")]
Features = Annotated[str, typer.Option(help="Feature specs, separated by commas.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes.  [default: one a core]", show_default=False)]
ExecutorName = Annotated[str, typer.Option("--executor", help="Where to work: `local` or `ray`.")]
RayAddress = Annotated[
    str | None, typer.Option(help="Host:port of a Ray cluster.  [default: start one on this machine]")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
# Number of skipped files to name; the others are counted.
NAMED = 3


def say(value: dict, text: str, as_json: bool) -> None:
    """Print a command's result: one JSON object for scripts, or text for users."""
    print(json.dumps(value, default=str) if as_json else text, flush=True)


def run_stage(what: str, run, notes: bool = False) -> tuple[Any, dict]:
    """Run a stage under a progress line; return its plan, and the plan's counts with the outcomes by reason.

    With `notes`, the plan is printed first, and `on_note` updates the line.
    """
    from dataclasses import fields

    from avpipe.pipeline.core.ledger import count_reasons
    from avpipe.pipeline.core.progress import ProgressLine

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


def failure_parts(result: dict) -> list[str]:
    """Format failures by reason for the summary line."""
    parts = [f"{count} failed: {reason}" for reason, count in result["failed"].items()]
    return parts + ([f"{result['failed_before']} failed before"] if result.get("failed_before") else [])


def report_skipped(result: dict, skipped: list[str], damage: list[str]) -> None:
    """Report what was skipped or damaged; exit with 1 for damage, or if everything failed.

    If some clips succeeded, failures should not stop the commands that follow.
    """
    if skipped:
        more = f", and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
        log.warning("skipped: %s%s", "; ".join(skipped[:NAMED]), more)
    for sentence in damage:
        log.warning("%s", sentence)
    nothing = result["failed"] and not result["done"] + result["finished"]
    if nothing:
        first = result["failures"][0]
        text = "all %s clips failed; the first, %s: %s: %s"
        log.warning(text, f"{len(result['failures']):,}", first["clip_id"], first["reason"], first["detail"])
    if damage or nothing:
        raise typer.Exit(1)
