"""Tables of a report as HTML; all text from runs and lists is escaped."""

import math
from collections.abc import Callable, Iterable
from html import escape

from avpipe.train.evaluation import bootstrap, metrics
from avpipe.train.evaluation.evaluate import Score
from avpipe.train.reports.html.charts import GLYPHS


def key(names: list[str], lines: bool = True) -> str:
    """Return the legend: a colour and a marker per run; with `lines` also floor and ceiling."""
    items = [f"<li>{run_name(number, name)}</li>" for number, name in enumerate(names)]
    if lines:
        items += ['<li><span class="dash"></span>floor</li>', '<li><span class="dot"></span>ceiling</li>']
    return f'<ul class="key">{"".join(items)}</ul>'


def run_name(number: int, name: str) -> str:
    """Return a run's marker and name."""
    return f'<span class="run-{number}"><span aria-hidden="true">{GLYPHS[number]}</span> {escape(name)}</span>'


def table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Return a table whose cells are HTML; the first cell of a row is its header. It scrolls if it is too wide."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    words = f'role="region" aria-label="{caption}" tabindex="0"'
    inner = f"<caption><span>{caption}</span></caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll {kind}" {words}><table>{inner}</table></div>'


def number(value: float | None) -> str:
    """Return the value with three decimals; a dash if it is unknown."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _range(interval: list[float]) -> str:
    return "–".join(f"{end:.3f}".replace("-", "−") for end in interval)


def _with_interval(value: float, interval: list[float]) -> str:
    return f"{number(value)}<small>{_range(interval)}</small>"


def summary(names: list[str], results: list[dict], scores: list[Score]) -> str:
    """Return the main protocol's scores with floor and ceiling, and the scores with other sounds."""
    head = ["Score", "Floor", *(run_name(n, name) for n, name in enumerate(names)), "Ceiling"]
    floor, ceiling = results[0]["floor"], results[0]["ceiling"]
    first = scores[0].scored()
    rows = [
        ["cIoU@0.5", number(floor["ciou"])]
        + [_with_interval(some["ciou"], some["interval"]["ciou"]) for some in results]
        + [number(ceiling["ciou"])],
        ["AUC", number(floor["auc"])]
        + [_with_interval(some["auc"], some["interval"]["auc"]) for some in results]
        + [number(ceiling["auc"])],
        ["mean cIoU", number(metrics.mean([row["floor_ciou"] for row in first]))]
        + [number(some["mean"]) for some in results]
        + [number(metrics.mean([row["ceiling_ciou"] for row in first]))],
        ["peak in a box", "–"]
        + [_with_interval(some["pointing"], some["interval"]["pointing"]) for some in results]
        + ["–"],
    ]
    sounds = {"wrong_audio": "cIoU@0.5 with another class’s sound", "silence": "cIoU@0.5 with silence"}
    for name, words in sounds.items():
        if any(name in some for some in results):
            rows.append([words, "–", *(_other_sound(some.get(name)) for some in results), "–"])
    rows.append(["clips scored", "", *(f"{some['clips_scored']:,}" for some in results), ""])
    return table("Scores between floor and ceiling, with 95 % intervals", head, rows)


def _other_sound(found: dict | None) -> str:
    if found is None:
        return "–"
    drop = f"{found['drop']:.3f}".replace("-", "−")
    return f"{number(found['ciou'])}<small>drop {drop}</small><small>{_range(found['interval'])}</small>"


def tracks(names: list[str], results: list[dict]) -> str:
    """Return each run's cIoU@0.5 as a point with its interval, on a line from 0 to 1 with floor and ceiling."""
    lines = []
    for index, (name, some) in enumerate(zip(names, results, strict=True)):
        low, high = some["interval"]["ciou"]
        marks = "".join(
            f'<i class="{kind}" style="left:{100 * value:.1f}%"></i>'
            for kind, value in (("floor", some["floor"]["ciou"]), ("ceiling", some["ceiling"]["ciou"]))
        )
        span = f'<i class="span" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
        point = f'<i class="point" style="left:{100 * some["ciou"]:.1f}%"></i>'
        lines.append(f'<p>{run_name(index, name)}</p><div class="track run-{index}">{marks}{span}{point}</div>')
    lines.append('<p class="ends"><b>0</b><b>cIoU@0.5</b><b>1</b></p>')
    return f'<div class="tracks" aria-hidden="true">{"".join(lines)}</div>'


def differences(names: list[str], scores: list[Score]) -> str:
    """Return text on the difference of each run from the first on the clips that both scored."""
    lines = []
    for index, (name, score) in list(enumerate(zip(names, scores, strict=True)))[1:]:
        found = bootstrap.compare(score.scored(), scores[0].scored())
        low, high = found["interval"]
        verdict = (
            "more than the choice of clips explains"
            if low > 0 or high < 0
            else "which the choice of clips alone could explain"
        )
        lines.append(
            f"<p>{run_name(index, name)} against {run_name(0, names[0])}: cIoU@0.5 "
            f"<strong>{_signed(found['difference'])}</strong> ({_signed(low)} to {_signed(high)}) on "
            f"{found['clips']:,} clips, {verdict}.</p>"
        )
    return "".join(lines)


def protocols(names: list[str], results: list[dict]) -> str:
    """Return cIoU@0.5 under every protocol of any run; empty if there is only one."""
    every = list(dict.fromkeys(name for some in results for name in some["protocols"]))
    if len(every) < 2:
        return ""
    head = ["Protocol", "Floor", *(run_name(n, name) for n, name in enumerate(names)), "Ceiling"]
    rows = []
    for protocol in every:
        of_runs = [some["protocols"].get(protocol) for some in results]
        one = next(filter(None, of_runs))
        values = [number(some["ciou"] if some else None) for some in of_runs]
        rows.append([escape(protocol), number(one["floor"]["ciou"]), *values, number(one["ceiling"]["ciou"])])
    return table("cIoU@0.5 under every protocol", head, rows)


def groups(caption: str, names: list[str], of_runs: list[dict[str, dict]], first: str, sortable: bool = False) -> str:
    """Return cIoU@0.5 of groups of clips, for one run also mean cIoU, for two the difference; `sortable` by column."""
    every = list(dict.fromkeys(group for some in of_runs for group in some))
    head = [first, "Clips", *(run_name(n, name) for n, name in enumerate(names))]
    head += {1: ["mean cIoU"], 2: ["Difference"]}.get(len(names), [])
    if sortable:
        head = [f'<button type="button">{cell}</button>' for cell in head]
    rows = []
    for group in every:
        found = [some.get(group) for some in of_runs]
        values = [some["ciou"] if some else math.nan for some in found]
        row = [escape(group), _cell(max(some["clips"] for some in found if some), "{:,}".format)]
        row += [_bar(value, index) for index, value in enumerate(values)]
        row += [_cell(found[0]["mean"], number)] if len(names) == 1 else []
        row += [_cell(values[1] - values[0], _signed)] if len(names) == 2 else []
        rows.append(row)
    return table(caption, head, rows, "sortable" if sortable else "")


def _cell(value: float, show: Callable) -> str:
    if math.isnan(value):
        return '<td data-value="">–</td>'
    return f'<td data-value="{value}">{show(value)}</td>'


def _bar(value: float, index: int) -> str:
    if math.isnan(value):
        return '<td data-value="">–</td>'
    bar = f'<i class="bar run-{index}" style="--share:{value:.3f}"></i>'
    return f'<td data-value="{value}">{number(value)}{bar}</td>'


def success_table(names: list[str], shares: list[list[float]], at: list[float]) -> str:
    """Return the threshold curves as numbers: `shares` are floor, the runs, ceiling."""
    head = ["cIoU at least", "Floor", *(run_name(n, name) for n, name in enumerate(names)), "Ceiling"]
    rows = [[f"{limit:.2f}", *(number(some[index]) for some in shares)] for index, limit in enumerate(at)]
    return table("Fraction of clips that reach a threshold", head, rows)
