"""One HTML file about evaluated runs: scores with floor and ceiling, curves, groups, and clips to see and hear.

The page is self-contained: it embeds style, script, pictures and sounds, and its policy forbids any request.
"""

import base64
import hashlib
import json
import logging
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.core.paths import Root
from avpipe.train.evaluation import metrics
from avpipe.train.evaluation.eval_set import clips_of_shards, open_split
from avpipe.train.evaluation.evaluate import Score
from avpipe.train.reports.html import charts, tables
from avpipe.train.reports.html.gallery import Gallery, Shown, gallery
from avpipe.train.reports.html.runs import Evaluated, common_protocol, distinct, read_run
from avpipe.train.reports.stored import read_log
from avpipe.train.run.logs import LOG, VALIDATION

log = logging.getLogger(__name__)

CLIPS = 12


def write_report(
    root: Root, runs: list[str], out: Path, split: str | None = None, clips: int = CLIPS, weights: Path | None = None
) -> dict:
    """Write `out`, an HTML page that compares the runs with the first of them.

    A run is a name, a folder, a checkpoint file, or a folder that `avpipe eval` wrote. `split` is needed if runs were
    evaluated on several; `clips` is the size of each group of the gallery, 0 for no gallery; `weights` as in `eval`.
    Returns a summary as plain values. Raises AvpipeError for a run that was not evaluated on the split and for runs
    that were scored on different lists or by different protocols.
    """
    if not 1 <= len(runs) <= len(charts.MARKERS):
        raise AvpipeError(f"a report is about 1 to {len(charts.MARKERS)} runs, not {len(runs)}")
    if out.is_dir():
        raise AvpipeError(f"{out} is a folder; give the name of a file to write, e.g. {out / 'report.html'}")
    found = distinct([read_run(root, text, split) for text in runs])
    protocol = common_protocol(found)
    pictures = _gallery(root, found, protocol, clips, weights)
    for note in pictures.notes:
        log.warning("%s", note)
    page = _page(found, protocol, pictures)
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return {
        "report": str(out),
        "runs": [run.name for run in found],
        "split": found[0].result["split"],
        "protocol": protocol,
        "clips": len(pictures.clips),
        "bytes": len(page.encode()),
        "notes": pictures.notes,
    }


def _gallery(root: Root, runs: list[Evaluated], protocol: str, count: int, weights: Path | None) -> Gallery:
    if not count:
        return Gallery(groups=[], clips=[], notes=[])
    try:
        shards = open_split(root, runs[0].result["split"])
    except AvpipeError as error:
        return Gallery(groups=[], clips=[], notes=[f"No pictures: {error}."])
    shown = [
        Shown(
            name=run.name,
            path=run.path,
            score=run.scores[protocol],
            object_guided=run.result.get("object_guided", False),
            published=run.result.get("checkpoint"),
        )
        for run in runs
    ]
    return gallery(root, shown, clips_of_shards(shards).sounding(), shards, count, weights)


def _page(runs: list[Evaluated], protocol: str, pictures: Gallery) -> str:
    names = [run.name for run in runs]
    results = [run.result | run.result["protocols"][protocol] for run in runs]
    if protocol != runs[0].result["protocol"]:  # scores with other sounds exist only for the first protocol
        results = [{k: v for k, v in some.items() if k not in ("wrong_audio", "silence")} for some in results]
    scores = [run.scores[protocol] for run in runs]
    style, script, page = (_packaged(name) for name in ("report.css", "report.js", "report_page.html"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {"runs": names, "groups": pictures.groups, "clips": pictures.clips}
    first = runs[0].result
    about = (
        f"Split <b>{escape(first['split'])}</b>, protocol <b>{escape(protocol)}</b>; {first['clips_scored']:,} of "
        f"{first['clips_listed']:,} listed clips scored, {first['clips_without_box']:,} without a usable box; list "
        f"<code>{escape(first['listed_sha256'][:12])}</code>."
    )
    return Template(page).substitute(
        title=escape(f"{listed(names)} on {first['split']}"),
        style=style,
        script=script,
        digest=digest,
        about=about,
        key=tables.key(names, lines=False),
        notes=_notes(runs, pictures.notes),
        summary=tables.tracks(names, results) + tables.summary(names, results, scores),
        differences=tables.differences(names, scores),
        protocols=tables.protocols(names, results),
        training=_training(runs),
        thresholds=_thresholds(names, scores),
        sizes=_sizes(names, scores, results),
        classes=_classes(names, results),
        data=_embedded(data),
    )


def listed(names: list[str]) -> str:
    """Return the names as text: A, B and C."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _packaged(name: str) -> str:
    return files("avpipe.train.reports.html").joinpath(name).read_text(encoding="utf-8")


def _embedded(data: dict) -> str:
    """Return JSON that can neither close the element that contains it nor open another one."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _notes(runs: list[Evaluated], others: list[str]) -> str:
    """Return notes to read before the scores: leakage, how a checkpoint was chosen, what is missing."""
    lines = []
    for run in runs:
        trained = run.result.get("trained_on")
        if not trained:
            continue
        line = f"{run.name}: trained on {trained['split']} ({trained['samples']:,} clips), step {trained['step']:,}"
        if trained["select_on"]:
            line += f"; its epoch was chosen by the score on {trained['select_on']}"
        lines.append(f"<li>{escape(line)}.</li>")
        leak = trained["leak"]
        if leak["clips"] or leak["videos"]:
            words = f"trained on {leak['clips']:,} of the scored clips, on {leak['videos']:,} of their videos"
            lines.append(f'<li class="alarm">LEAK: {escape(run.name)} was {words}.</li>')
    if len({run.result["clips_scored"] for run in runs}) > 1:
        lines.append(
            '<li class="alarm">The runs scored different numbers of clips; floor and ceiling are of the first.'
        )
    lines += [f'<li class="alarm">{escape(note)}</li>' for note in others]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _training(runs: list[Evaluated]) -> str:
    figures = []
    for number, run in enumerate(runs):
        rows = list(read_log(run.folder / LOG, ("step", "epoch", "loss")))
        if len(rows) < 2:
            figures.append(f"<p>{tables.run_name(number, run.name)}: no training log.</p>")
            continue
        steps, epochs, losses = np.array(rows).T
        measured = list(read_log(run.folder / VALIDATION, ("step", "value")))
        svg = charts.training(steps.astype(int), losses, epochs, number, measured)
        figures.append(f"<figure><figcaption>{tables.run_name(number, run.name)}</figcaption>{svg}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>'


def _thresholds(names: list[str], scores: list[Score]) -> str:
    at, rows = np.arange(0, 21, 2) / 20, [score.scored() for score in scores]
    columns = [(rows[0], "floor_ciou"), *((some, "ciou") for some in rows), (rows[0], "ceiling_ciou")]
    shares = [charts.success_shares([row[column] for row in some], at).tolist() for some, column in columns]
    more = tables.success_table(names, shares, at.tolist())
    figure = f"<figure>{tables.key(names)}{charts.thresholds(scores)}</figure>"
    return f"{figure}<details><summary>The curves as numbers</summary>{more}</details>"


def _sizes(names: list[str], scores: list[Score], results: list[dict]) -> str:
    boxed = [row for row in scores[0].scored() if row["box_area"] > 0]
    sizes = metrics.size_classes([row["gt_pixels"] for row in boxed]).tolist()
    if not boxed:
        return ""
    limits = []
    for column in ("floor_ciou", "ceiling_ciou"):
        of_size = metrics.grouped(sizes, [row[column] for row in boxed])
        limits.append({name: of_size[name] for name in metrics.SIZES if name in of_size})
    of_runs = [some["by_size"] for some in results]
    figure = f"<figure>{tables.key(names)}{charts.by_size(of_runs, *limits)}</figure>"
    more = tables.groups("cIoU@0.5 by size of the boxes", names, of_runs, "Size")
    return f"{figure}<details><summary>The bars as numbers</summary>{more}</details>"


def _classes(names: list[str], results: list[dict]) -> str:
    of_runs = [some["by_class"] for some in results]
    if not any(of_runs):
        return "<p>The clips of this split have no classes.</p>"
    return tables.groups("cIoU@0.5 by class", names, of_runs, "Class", sortable=True)
