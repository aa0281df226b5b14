"""Reports about runs whose files are damaged or hostile: a sentence that names the file, or a page without any script.

python tests/chaos/report.py --rounds 400 --seed 0
"""

import collections
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.train.evaluation.eval_set import EvalSet
from avpipe.train.evaluation.evaluate import centre_maps, evaluate, write_per_clip
from avpipe.train.reports.html.report import write_report
from avpipe.train.run.logs import LOG, VALIDATION

HANGS_S = 60
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
ODD = (None, True, -1, 2**70, 1e308, float("nan"), float("inf"), "", MARKUP, "\x1b[31m$x$\0", [], {}, [[]], {"a": 1})


def made(root: Root) -> None:
    """An evaluation of sixty clips, with logs of its training."""
    rng, run = np.random.default_rng(0), root.runs / "run"
    corner = rng.uniform(0, 0.5, (60, 2))
    clips = EvalSet(
        split="made",
        listed=60,
        listed_sha256="ab" * 32,
        clip_ids=[f"{n:020}" for n in range(60)],
        labels=[f"class {n % 4}" for n in range(60)],
        boxes=[[{"annotator": "a", "xmin": x, "ymin": y, "xmax": x + 0.4, "ymax": y + 0.3}] for x, y in corner],
    )
    scores = evaluate(clips, centre_maps(clips), ["avpipe", "lvs"])
    summaries = {score.protocol: score.summary() for score in scores}
    other = {"ciou": 0.3, "drop": 0.1, "interval": [0.0, 0.2], "pointing": 0.5}
    trained = {"split": "x", "samples": 9, "step": 3, "select_on": None, "leak": {"clips": 0, "videos": 1}}
    result = {"split": "made", "model": "run", "clips_listed": 60, "listed_sha256": clips.listed_sha256}
    result |= {**summaries["avpipe"], "protocols": summaries, "wrong_audio": other, "trained_on": trained}
    folder = run / "eval" / "made"
    write_per_clip(scores, folder / "per_clip.parquet")
    (folder / "metrics.json").write_text(json.dumps(result))
    losses = "".join(f"{n},{1 + n // 10},{5 - n / 9},10,0\n" for n in range(30))
    (run / LOG).write_text(f"step,epoch,loss,clips_per_s,data_wait\n{losses}")
    (run / VALIDATION).write_text("step,epoch,measure,value\n10,1,validation_loss,2\n20,2,validation_loss,1\n")


def odd_json(path: Path, rng: random.Random) -> None:
    """A value is of another type, or is missing, or is one too many; or the text is none."""
    content = json.loads(path.read_text())
    hostile.odd_entry(content, ODD, rng, MARKUP)
    whole = json.dumps(content)
    path.write_text(rng.choice((*[whole] * 6, whole[: rng.randrange(len(whole))], "[" * 200_000, "[]", "null", "")))


def odd_table(path: Path, rng: random.Random) -> None:
    """A column is of another type, is missing, or has a value that no evaluation gives."""
    table = pq.read_table(path)
    place = rng.randrange(table.num_columns)
    field, column = table.schema[place], table.columns[place].to_pylist()
    kind = rng.randrange(4)
    if kind == 0:
        table = table.remove_column(place)
    elif kind == 1:
        odd = (pa.array([str(value) for value in column]), pa.array([[1]] * len(column)), pa.nulls(len(column)))
        table = table.set_column(place, field.name, rng.choice(odd))
    elif kind == 2:
        values = {"string": (MARKUP, "", "\0", None), "double": (float("nan"), 1e308, -1.0, None, float("inf"))}
        some = values.get(str(field.type), (None,))
        for _ in range(rng.choice((1, 60, 120))):
            column[rng.randrange(len(column))] = rng.choice(some)
        table = table.set_column(place, field.name, pa.array(column, field.type))
    else:
        table = rng.choice((table.slice(0, 0), pa.concat_tables([table] * 2), table.slice(0, 60)))
    pq.write_table(table, path)


def odd_log(path: Path, rng: random.Random) -> None:
    """Cells and lines that no training writes."""
    lines = path.read_text().splitlines()
    cells = ("nan", "inf", "1e308", "-5", MARKUP, "", "\0", '"' + "x" * 200_000, "9" * 5000, "1,2,3,4,5,6")
    for _ in range(rng.choice((1, 3, 20))):
        row = rng.randrange(len(lines))
        parts = lines[row].split(",")
        parts[rng.randrange(len(parts))] = rng.choice(cells)
        lines[row] = ",".join(parts)
    path.write_text("\n".join(lines))


def broken(path: Path, rng: random.Random) -> None:
    """Bits are flipped, or the end is gone, or it is no file at all."""
    path.write_bytes(hostile.broken(path.read_bytes(), rng))
    if rng.random() > 0.85:
        path.unlink()
        rng.choice((os.mkfifo, os.mkdir))(path)


def attack(folder: Path, rounds: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """(how the files were answered, faults as sentences)."""
    rng, counts, faults = random.Random(seed), collections.Counter(), []
    made(Root(folder / "whole"))
    own = {"metrics.json": odd_json, "per_clip.parquet": odd_table, LOG: odd_log, VALIDATION: odd_log}
    for number in range(rounds):
        root = Root(shutil.copytree(folder / "whole", folder / str(number)))
        name = list(own)[number % 4]
        kind = rng.choice((own[name], own[name], broken))
        kind(next(root.path.rglob(name)), rng)
        what = f"{number} {name} {kind.__name__}"
        with hostile.watched(faults, what, HANGS_S):
            signal.alarm(HANGS_S)
            try:
                write_report(root, ["run"], root.path / "report.html", clips=0)
            except AvpipeError as error:
                counts[f"{name}: refused"] += 1
                if name not in str(error) or not str(error).isprintable():
                    faults.append(f"{what}: the sentence does not name the file: {error}")
            else:
                counts[f"{name}: shown"] += 1
                if MARKUP in (root.path / "report.html").read_text():
                    faults.append(f"{what}: markup came through")
            finally:
                signal.alarm(0)
    return counts, faults


if __name__ == "__main__":
    sys.exit(hostile.run(attack, "reports on hostile files"))
