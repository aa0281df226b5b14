"""Read the files of runs for reports as untrusted input: each file is validated here, or refused as a whole."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,  # before 3.12 pydantic cannot read typing's
)

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.text import one_line
from avpipe.train.core.schema import Count, PlainText, first_fault
from avpipe.train.evaluation.evaluate import PER_CLIP, Score
from avpipe.train.evaluation.protocols import PROTOCOLS

# For 200,000 clips under all protocols these files have 1, 100 and 10 MB.
MOST_BYTES = {".json": 1 << 26, ".parquet": 1 << 30, ".csv": 1 << 28}
MOST_ROWS = 20_000_000
# The largest value that a chart can show.
LARGEST = 1e30


def _fraction(value: float) -> float:
    if not (math.isnan(value) or -1 <= value <= 1):
        raise ValueError("is not a fraction")
    return value


Fraction = Annotated[float, AfterValidator(_fraction)]
"""From 0 to 1, or from -1 for differences; NaN if there is nothing to count."""
Interval = Annotated[list[Fraction], Field(min_length=2, max_length=2)]


@with_config(strict=True)
class _Ends(TypedDict):
    ciou: Fraction
    auc: Fraction


@with_config(strict=True)
class _Intervals(TypedDict):
    ciou: Interval
    auc: Interval
    pointing: Interval


@with_config(strict=True)
class _Group(TypedDict):
    clips: Count
    ciou: Fraction
    mean: Fraction


@with_config(strict=True)
class _Summary(TypedDict):
    """The result of `evaluation.evaluate.Score.summary`."""

    clips_scored: Count
    clips_without_box: Count
    ciou: Fraction
    auc: Fraction
    mean: Fraction
    pointing: Fraction
    interval: _Intervals
    floor: _Ends
    ceiling: _Ends
    by_size: dict[PlainText, _Group]
    by_class: dict[Annotated[str, Field(max_length=1000)], _Group]


@with_config(strict=True)
class _OtherSound(TypedDict):
    ciou: Fraction
    drop: Fraction
    interval: Interval


@with_config(strict=True)
class _Leak(TypedDict):
    clips: Count
    videos: Count


@with_config(strict=True)
class _TrainedOn(TypedDict):
    split: PlainText
    samples: Count
    step: Count
    select_on: PlainText | None
    leak: _Leak


@with_config(strict=True)
class _Checkpoint(TypedDict):
    format: PlainText
    file: PlainText


@with_config(strict=True)
class _Metrics(_Summary):
    """The metrics.json of `evaluation.run.run_eval`."""

    model: PlainText
    split: PlainText
    listed_sha256: PlainText
    clips_listed: Count
    protocol: PlainText
    protocols: dict[PlainText, _Summary]
    object_guided: NotRequired[bool]
    checkpoint: NotRequired[_Checkpoint]
    trained_on: NotRequired[_TrainedOn]
    wrong_audio: NotRequired[_OtherSound]
    silence: NotRequired[_OtherSound]


@with_config(strict=True)
class _Retrieval(TypedDict):
    """The metrics.json of `evaluation.retrieval.run_retrieval`."""

    clips_listed: Count
    clips_scored: Count
    trained_on: NotRequired[_TrainedOn]
    audio_retrieval: NotRequired[dict[PlainText, Fraction | dict[PlainText, Fraction]]]
    cross_modal_retrieval: NotRequired[dict[PlainText, Fraction | dict[PlainText, Fraction]]]


_METRICS, _RETRIEVAL = TypeAdapter(_Metrics), TypeAdapter(_Retrieval)


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the metrics.json of an evaluation. Raises AvpipeError for any other file."""
    return _checked(path, _METRICS)


def read_search(path: Path) -> dict[str, Any]:
    """Return the metrics.json of a retrieval. Raises AvpipeError for any other file."""
    return _checked(path, _RETRIEVAL)


def _checked(path: Path, schema: TypeAdapter) -> dict[str, Any]:
    _check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema.validate_python(content)
    except ValidationError as error:
        raise AvpipeError(f"{path} was not written by avpipe ({first_fault(error)})") from None
    except (OSError, RecursionError, ValueError) as error:
        raise AvpipeError(f"{path} is damaged ({one_line(error)})") from None
    return content


def read_scores(path: Path) -> dict[str, Score]:
    """Return, by protocol, the scores that `write_per_clip` wrote. Raises AvpipeError for any other file."""
    _check_file(path)
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"{file.metadata.num_rows:,} rows")
        if missing := [field.name for field in PER_CLIP if field not in list(file.schema_arrow)]:
            raise ValueError(f"no column {missing[0]} of the right type")
        table = file.read(PER_CLIP.names)
        _check_values(table)
        rows_of: dict[str, list[dict]] = {}
        for row in table.to_pylist():
            rows_of.setdefault(row["protocol"], []).append(row)
        scores = {name: Score(protocol=name, rows=rows) for name, rows in rows_of.items()}
        if boxless := [name for name, some in scores.items() if not any(row["box_area"] > 0 for row in some.scored())]:
            raise ValueError(f"no clip with a box under {boxless[0]}")
    except (pa.ArrowException, MemoryError, OSError, OverflowError, ValueError) as error:
        raise AvpipeError(f"{path} is damaged or was not written by avpipe ({one_line(error)})") from None
    return scores


def _check_values(table: pa.Table) -> None:
    """Raise ValueError for values that no evaluation produces."""
    for name in PER_CLIP.names:
        column = table[name]
        if column.null_count and name != "label":
            raise ValueError(f"{name} has missing values")
        if pa.types.is_floating(column.type):
            known = column.filter(pc.invert(pc.is_nan(column)))
            most = math.inf if name in ("confidence", "gt_pixels") else 1
            if len(known) and not (name == "confidence" or 0 <= pc.min(known).as_py() <= pc.max(known).as_py() <= most):
                raise ValueError(f"{name} has values outside its range")
    if pc.any(pc.is_nan(table["box_area"])).as_py() or pc.any(pc.is_nan(table["gt_pixels"])).as_py():
        raise ValueError("the size of a box is not a number")
    if unknown := set(pc.unique(table["protocol"]).to_pylist()) - PROTOCOLS.keys():
        raise ValueError(f"unknown protocol {min(unknown)}")


def read_log(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[float, ...]]:
    """Yield the columns of each complete row; a killed run may leave half a row. Yields nothing without a file."""
    if not path.exists():
        return
    _check_file(path)
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        try:
            for row in csv.DictReader(file):
                if values := _numbers(row, columns):
                    yield values
        except csv.Error as error:
            raise AvpipeError(f"{path} is damaged ({one_line(error)}); remove it") from None


def _numbers(row: dict, columns: tuple[str, ...]) -> tuple[float, ...] | None:
    try:
        values = tuple(float(row[name]) for name in columns)
    except (KeyError, TypeError, ValueError):
        return None
    return values if all(abs(value) < LARGEST for value in values) and values[0] >= 0 else None


def _check_file(path: Path) -> None:
    """Raise AvpipeError unless `path` is a regular file of plausible size."""
    if not path.is_file():
        raise AvpipeError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}")
    if (size := path.stat().st_size) > MOST_BYTES[path.suffix]:
        raise AvpipeError(f"{path} has {size:,} bytes, more than the limit of {MOST_BYTES[path.suffix]:,}")
