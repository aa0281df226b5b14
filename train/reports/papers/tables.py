"""The output of `avpipe reproduce`: the comparison, the plan, and the outcomes of a run."""

from avpipe.train.reports.papers.paper_rows import NAMES


def comparison_table(rows: list[dict]) -> str:
    """Return rows of `reports.papers.reproduce.compare` as text, by paper and table, followed by notes."""
    lines, of_table = [], {}
    for row in rows:
        of_table.setdefault(f"{NAMES[row['paper']]}, table {row['table']}", []).append(row)
    for head, some in of_table.items():
        cells = [["", "trained on → scored on", "metric", "theirs", "ours", "diff", "coverage", "leak"]]
        lines += [head, *_aligned([*cells, *map(_cells, some)], left=3)]
    done = sum(row["ours"] is not None for row in rows)
    here = [row for row in rows if row["runnable"]]
    lines.append(f"{len(rows)} rows: {done} run, {len(here) - done} not run, {len(rows) - len(here)} not in avpipe")
    lines.append("coverage: clips scored of clips listed; leak: scored clips that were trained on")
    trainings = [(row["runnable"]["run"], row["trained_samples"], row["trained_listed"]) for row in here]
    lines += dict.fromkeys(
        f"{run}: trained on {some:,} of {all_:,} listed clips" for run, some, all_ in trainings if some and all_
    )
    lines += dict.fromkeys(_why(row) for row in rows if row["ours"] is None and row["status"] != "not run")
    lines += dict.fromkeys(note for row in here for note in row["runnable"]["notes"])
    return "\n".join(lines)


def _why(row: dict) -> str:
    return f"{row['runnable']['run']}: {row['status']}" if row["runnable"] else row["status"]


def _cells(row: dict) -> list[str]:
    names = f"{row['train_split'] or 'nothing'} → {row['eval_split'].removesuffix('_retrieval')}"
    cells = [f"{row['method']} {row['variant']}".strip(), names, row["metric"], f"{row['theirs']:.4f}"]
    if row["ours"] is None:
        return [*cells, "–", "–", "–", "–"]
    leak = f"{row['leak']['clips']:,}" if row["leak"] else "–"
    coverage = f"{row['clips_scored']:,}/{row['clips_listed']:,}"
    return [*cells, f"{row['ours']:.4f}", f"{row['difference']:+.4f}", coverage, leak]


def plan_table(planned: dict) -> str:
    """Return the result of `plan` as text."""
    cells, lines = [["run", "samples", "steps", "clips/s", "hours", "status"]], []
    for one in planned["trainings"]:
        forms = {"samples": ",", "steps": ",", "clips_per_s": ",.1f", "hours": ",.1f"}
        numbers = ["–" if one[name] is None else format(one[name], form) for name, form in forms.items()]
        cells.append([one["run"], *numbers, "; ".join(filter(None, (one["status"], one["missing"])))])
    shown = _aligned(cells, left=1)
    lines.append(shown[0])
    for one, text in zip(planned["trainings"], shown[1:], strict=True):
        settings = " ".join([one["recipe"], *one["changes"]])
        lines += [text, f"    {settings} on {one['split']}; scored on {', '.join(one['scored_on'])}"]
    lines.append(
        "samples and steps from the published list if there are no shards yet; hours at the speed of a finished"
    )
    lines.append("run on this machine with the same network, view and batch, – if there is none")
    if planned["commands"]:
        lines += ["Missing shards:", *(f"  {command}" for command in planned["commands"])]
    return "\n".join(lines)


def outcome_table(outcomes: list[dict]) -> str:
    """Return the result of `run` as text."""
    lines = []
    for one in outcomes:
        lines.append(f"{one['run']}: training {one['training']}")
        lines += [f"  {what}: {result}" for what, result in one["scored"].items()]
    return "\n".join(lines)


def _aligned(cells: list[list[str]], left: int) -> list[str]:
    """Return lines with aligned columns, the first `left` of them left-aligned; nothing is truncated."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = "<" * left + ">" * (len(widths) - left)
    rows = ([f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)] for row in cells)
    return [("  " + "  ".join(row)).rstrip() for row in rows]
