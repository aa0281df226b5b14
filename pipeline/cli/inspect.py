"""`avpipe status` and `avpipe doctor`: how far the work has progressed, and what this machine lacks."""

import time
from typing import Annotated

import typer

from avpipe.pipeline.cli.common import Json, say
from avpipe.pipeline.core.paths import Root

REFRESH_S = 5.0
status_app = typer.Typer()


@status_app.command("status", epilog="Example: avpipe status --split vggss --watch")
def status_command(
    context: typer.Context,
    split: Annotated[str | None, typer.Option(help="Name of a split.  [default: all that have begun]")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every few seconds, until Ctrl-C.")] = False,
    as_json: Json = False,
):
    """Show what is done, failed (and why) and left in every stage, the rate, and how many clips a retry may recover."""
    from rich.console import Console

    from avpipe.pipeline.core.errors import AvpipeError
    from avpipe.pipeline.inspect.status import status, status_table

    root: Root = context.obj
    if watch and as_json:
        raise AvpipeError("--watch shows a table for users; drop it or --json")
    rows = status(root, split)
    if as_json:
        say({"stages": [row.record() for row in rows]}, "", as_json)
    elif watch:
        _watch(root, split)
    else:
        Console().print(status_table(rows))


def _watch(root: Root, split: str | None) -> None:
    from rich.live import Live

    from avpipe.pipeline.inspect.status import status, status_table

    with Live(status_table(status(root, split)), auto_refresh=False) as live:
        try:
            while True:
                time.sleep(REFRESH_S)
                live.update(status_table(status(root, split)), refresh=True)
        except KeyboardInterrupt:
            pass  # the way to quit


@status_app.command("doctor", epilog="Example: avpipe doctor")
def doctor_command(context: typer.Context, as_json: Json = False):
    """Report what this machine lacks, one fix per line; exit with 1 if download or extract cannot work."""
    from avpipe.pipeline.inspect.doctor import Level, examine

    findings = examine(context.obj)
    broken = [finding for finding in findings if finding.level == Level.MISSING]
    lines = [f"{finding.level:8} {finding.name:22} {finding.found}" for finding in findings]
    fixes = [f"  {finding.name}: {finding.fix}" for finding in findings if finding.fix]
    text = "\n".join([*lines, *(["", "What to do:", *fixes] if fixes else [])])
    say({"ok": not broken, "findings": [finding.record() for finding in findings]}, text, as_json)
    if broken:
        raise typer.Exit(1)
