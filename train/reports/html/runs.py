"""The evaluations of a report: found by name, read, and checked to be comparable."""

from dataclasses import dataclass, replace
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import check_split_name
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.text import one_line
from avpipe.train.evaluation.evaluate import Score
from avpipe.train.models.load import find_run
from avpipe.train.reports.stored import read_metrics, read_scores

METRICS, PER_CLIP = "metrics.json", "per_clip.parquet"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A run with the results of `avpipe eval`."""

    name: str
    path: Path
    """Folder of the run, or the checkpoint file that was given."""
    result: dict
    scores: dict[str, Score]
    """By protocol."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.path if self.path.is_dir() else self.path.parent


def read_run(root: Root, text: str, split: str | None) -> Evaluated:
    """Return the run of a name or path with its evaluation on `split`, or with its only evaluation.

    Raises AvpipeError if there is none or several, or if `avpipe eval` did not write the files.
    """
    path = find_run(root, text)
    if (path / METRICS).exists():
        path, folder = path.parent.parent, path
    else:
        folder = _evaluation(path, split)
    try:
        result, scores = read_metrics(folder / METRICS), read_scores(folder / PER_CLIP)
        if missing := result["protocols"].keys() - scores.keys():
            raise AvpipeError(f"{folder / PER_CLIP} has no rows of {one_line(min(missing))}")
    except AvpipeError as error:
        again = f"run `avpipe eval --split {folder.name} --checkpoint {path}` again"
        raise AvpipeError(f"{folder} is not a complete evaluation ({error}); {again}") from None
    return Evaluated(name=result["model"], path=path, result=result, scores=scores)


def _evaluation(path: Path, split: str | None) -> Path:
    """Return the folder of a run's evaluation."""
    run = path if path.is_dir() else path.parent
    if split is not None:
        for name in split.removesuffix("-object-guided").split("-only-"):
            check_split_name(name)
        if not (run / "eval" / split / METRICS).exists():
            command = f"avpipe eval --split {split.split('-')[0]} {_how(path)}"
            raise AvpipeError(f"{path} has no evaluation on {split}; run: {command}")
        return run / "eval" / split
    there = sorted(some.parent for some in run.glob(f"eval/*/{METRICS}"))
    if not there:
        raise AvpipeError(f"{path} has no evaluation; run: avpipe eval --split SPLIT {_how(path)}")
    if len(there) > 1:
        names = ", ".join(folder.name for folder in there)
        raise AvpipeError(f"{path} has evaluations on {names}; choose one with --split")
    return there[0]


def _how(path: Path) -> str:
    baseline = path.name.removeprefix("baseline-")
    return f"--checkpoint {path}" if baseline == path.name else f"--baseline {baseline}"


def distinct(runs: list[Evaluated]) -> list[Evaluated]:
    """Return the runs; those with the same name are renamed to their paths.

    Raises AvpipeError if the same run is given twice.
    """
    keys = [(run.path.resolve(), run.name) for run in runs]
    for key in keys:
        if keys.count(key) > 1:
            raise AvpipeError(f"{key[1]} is given twice; a report compares different runs")
    names = [run.name for run in runs]
    return [replace(run, name=str(run.path)) if names.count(run.name) > 1 else run for run in runs]


def common_protocol(runs: list[Evaluated]) -> str:
    """Return the first run's first protocol that all runs have. Raises AvpipeError for runs that do not compare."""
    first = runs[0]
    for run in runs[1:]:
        for field, plural in (("split", "splits"), ("listed_sha256", "lists")):
            ours, theirs = first.result[field], run.result[field]
            if ours != theirs:
                raise AvpipeError(
                    f"{first.name} and {run.name} were evaluated on different {plural} ({ours[:16]}, {theirs[:16]}); "
                    f"evaluate both on the same one and give it with --split"
                )
    shared = [name for name in first.result["protocols"] if all(name in run.result["protocols"] for run in runs)]
    if not shared:
        raise AvpipeError("the runs were scored by different protocols; run `avpipe eval --protocol all` for each")
    return shared[0]
