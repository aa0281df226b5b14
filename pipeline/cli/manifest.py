"""`avpipe manifest`: builds, shows and audits the tables, derives splits, writes lists."""

import json
from pathlib import Path
from typing import Annotated

import typer

from avpipe.pipeline.cli.common import Features, Json, Workers, say
from avpipe.pipeline.core.paths import Root, check_outside

manifest_app = typer.Typer(
    no_args_is_help=True, help="The tables of all clips, boxes and splits: build, inspect, derive, export."
)
# Rows of the class histogram that fit on a screen; --json has all.
CLASSES_SHOWN = 20


@manifest_app.command("build", epilog="Example: avpipe manifest build --lists my-lists")
def build(
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
    from avpipe.pipeline.core.progress import ProgressLine
    from avpipe.pipeline.manifest.build import build_manifest
    from avpipe.pipeline.manifest.catalogue import fetch_lists

    root: Root = context.obj
    if lists is None:
        lists = root.lists
        with ProgressLine("lists", 0, "lists") as line:
            fetch_lists(lists, on_plan=line.set_total, on_list=lambda name: line.advance(note=name))
    counts = build_manifest(lists, root.manifest, accept_changed)
    lines = [
        f"{root.manifest}: {counts['clips']:,} clips, {counts['boxes']:,} boxes ({counts['boxes_unusable']} unusable)"
    ]
    lines += [f"  {name:22} {size:>8,}" for name, size in counts["splits"].items()]
    for name, expected in counts["splits_incomplete"].items():
        lines.append(f"incomplete: {name} has {expected:,} clips once its list is there")
    lines += [f"not derived: {name} ({why})" for name, why in counts["splits_not_derived"].items()]
    if counts["lists_missing"]:
        lines.append(f"not among the lists: {', '.join(counts['lists_missing'])}")
    say(counts, "\n".join(lines), as_json)


@manifest_app.command("show", epilog="Example: avpipe manifest show vggss")
def show(
    context: typer.Context,
    split: Annotated[str | None, typer.Argument(help="Name of a split.  [default: list all]")] = None,
    as_json: Json = False,
):
    """Show the sizes of all splits; or the hash, classes and progress of one."""
    from avpipe.pipeline.inspect.coverage import coverage, histogram
    from avpipe.pipeline.manifest.tables import Manifest

    root: Root = context.obj
    manifest = Manifest.open(root.manifest)
    if split is None:
        sizes = manifest.split_sizes()
        say({"splits": sizes}, "\n".join(f"{name:22} {size:>8,}" for name, size in sizes.items()), as_json)
        return
    facts = manifest.split_facts(split)
    ids = manifest.split_ids(split)
    classes = dict(histogram(manifest.labels(ids).values()))
    value = {"split": split} | facts | {"coverage": coverage(root, ids), "unlabelled": classes.pop(None, 0)}
    value |= {"classes": classes}
    say(value, _shown(value), as_json)


def _shown(value: dict) -> str:
    """Format a split: facts, coverage, the largest classes as bars."""
    source = f"list {value['list']}" if "list" in value else f"derived: {json.dumps(value['rule'])}"
    found = value["coverage"]
    lines = [f"{value['split']}: {value['listed']:,} rows, {found['clips']:,} clips, for {value['role']}; {source}"]
    lines.append(f"SHA-256 of the sorted ids: {value['sha256']}")
    lines += _coverage_lines(found)
    classes = value["classes"]
    lines.append(f"{len(classes)} classes, {value['unlabelled']:,} clips without a label")
    shown = list(classes.items())[:CLASSES_SHOWN]
    longest = max(classes.values(), default=1)
    width = max((len(label) for label, _ in shown), default=0)
    lines += [f"  {label:{width}} {count:>6,} {'█' * round(30 * count / longest)}" for label, count in shown]
    if len(classes) > len(shown):
        lines.append(f"  … and {len(classes) - len(shown)} more; --json lists all")
    return "\n".join(lines)


def _coverage_lines(found: dict) -> list[str]:
    clips = found["clips"]
    failed = ", ".join(f"{count:,} {reason}" for reason, count in found["failed"].items())
    lines = [f"downloaded {_share(found['downloaded'], clips)}" + (f" (failed: {failed})" if failed else "")]
    lines += [f"extracted {_share(count, clips)} in {name}" for name, count in found["extracted"].items()]
    return lines + [f"sharded {_share(count, clips)} in {name}" for name, count in found["sharded"].items() if count]


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} ({count / max(of, 1):.1%})"


@manifest_app.command("audit", epilog="Example: avpipe manifest audit --json")
def audit(
    context: typer.Context,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Also look for one recording under two ids among the extracted clips.")
    ] = False,
    features: Features = "logspec",
    workers: Workers = None,
    as_json: Json = False,
):
    """Count the test clips and videos in every training list, and the boxes that cannot be used."""
    from avpipe.pipeline.manifest.audit import audit as run
    from avpipe.pipeline.manifest.audit import audit_table
    from avpipe.pipeline.manifest.tables import Manifest

    root: Root = context.obj
    manifest = Manifest.open(root.manifest)
    report = run(root.manifest, manifest.roles())
    text = audit_table(report)
    if duplicates:
        from avpipe.pipeline.extract.cache import Cache
        from avpipe.pipeline.features.settings import ExtractSettings
        from avpipe.pipeline.inspect.duplicates import find_duplicates
        from avpipe.pipeline.work.base import default_workers

        cache = Cache(root.cache / ExtractSettings(features=tuple(features.split(","))).name)
        report["same_recording"] = find_duplicates(cache, workers or default_workers())
        text += "\n" + _duplicates_text(report["same_recording"])
    say(report, text, as_json)


def _duplicates_text(found: dict) -> str:
    lines = [
        f"  {d['clip_a']}  {d['clip_b']}  begins {d['offset_s']:+.2f} s, {d['overlap_s']:.1f} s in common, "
        f"{d['bit_error_rate']:.1%} of the bits differ"
        for d in found["duplicates"]
    ]
    heading = f"One recording under two ids: {len(lines)} pairs among {found['clips']:,} clips"
    return "\n".join([f"{heading} ({found['silent']:,} silent ones left out)", *lines])


@manifest_app.command("derive", epilog="Example: avpipe manifest derive clean_144k --of ezvsl_144k --without vggss")
def derive(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new split: letters a-z, digits, underscores.")],
    of: Annotated[str, typer.Option(help="The split to take clips from.")],
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out the clips of this split and all others of their videos.")
    ] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="Keep this many, drawn by the seed.")] = None,
    whole_videos: Annotated[
        bool, typer.Option("--whole-videos", help="Draw videos, with all their clips, until there are enough.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draw; the same seed draws the same clips on any machine.")] = 0,
    as_json: Json = False,
):
    """Add a split of your own: a list without a test list, a subset, a validation part and its rest."""
    from avpipe.pipeline.manifest.derive import derive as run
    from avpipe.pipeline.manifest.tables import Manifest

    manifest = Manifest.open(context.obj.manifest)
    facts = run(manifest, name, of, tuple(without or ()), clips=clips, whole_videos=whole_videos, seed=seed)
    say({"split": name} | facts, f"{name}: {facts['listed']:,} clips, SHA-256 of their ids {facts['sha256']}", as_json)


@manifest_app.command("export", epilog="Example: avpipe manifest export vggss_ssltie > test_vggss_4911.txt")
def export(
    context: typer.Context,
    split: Annotated[str | None, typer.Argument(help="Name of a split; its list goes to standard output.")] = None,
    out: Annotated[Path | None, typer.Option(help="Without a split: folder for all published lists.")] = None,
):
    """Write lists as they were published, byte for byte: one to standard output, or all into a folder."""
    import sys

    from avpipe.pipeline.core.errors import AvpipeError
    from avpipe.pipeline.exchange.export_lists import export_lists, list_text
    from avpipe.pipeline.manifest.tables import Manifest

    root: Root = context.obj
    manifest = Manifest.open(root.manifest)
    if (split is None) == (out is None):
        raise AvpipeError("name either a split, or with --out a folder for all lists")
    if split is not None:
        sys.stdout.buffer.write(list_text(manifest, split).encode())
        return
    check_outside(out, root)
    print("\n".join(map(str, export_lists(manifest, out))))
