"""The table of the largest deviations, at the end of a run. The records reach it in the reports of the tests."""

PROPERTY = "parity"
HEADINGS = ("kind", "quantity", "dtype", "absolute", "of largest", "tolerance", "used", "files")


def lines(reports) -> list[str]:
    """One line for each quantity of each kind in each precision: the comparison of all files that came closest."""
    rows: dict[tuple, list[dict]] = {}
    for report in reports:
        for name, records in report.user_properties:
            for record in records if name == PROPERTY else ():
                key = record["kind"], record["dtype"], record["quantity"]
                rows.setdefault(key, []).append(record)
    if not rows:
        return []
    cells = [HEADINGS, *(_row(*key, records) for key, records in sorted(rows.items()))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _row(kind: str, dtype: str, quantity: str, records: list[dict]) -> tuple[str, ...]:
    closest = max(records, key=lambda record: record["share"])
    numbers = (f"{max(record[name] for record in records):.1e}" for name in ("deviation", "relative"))
    used = f"{closest['share']:.1%}"
    return kind, quantity, dtype, *numbers, closest["tolerance"], used, str(len(records))
