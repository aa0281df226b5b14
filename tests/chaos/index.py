"""Gives verify, train and status hostile indexes: flipped bits, other types, huge counts, names that lead elsewhere.

    python tests/chaos/index.py --rounds 600 --seed 1

Every one must be refused in a sentence or reported, or be the same as the true one in all that is read.
"""

import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import pyarrow as pa
import pyarrow.parquet as pq
from common import Tally, options, succeed

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.shards import verify
from avpipe.pipeline.shards.index import INDEX, read_clip_ids
from avpipe.train.data.open import open_shards

ODD_VALUES = [None, -1, 2**62, 2**70, 0.5, float("nan"), "", "x", "../../x", "/etc/passwd", "\x00", [], [[]], {}, True]
ODD_NAMES = ["../x.tar", "/etc/x.tar", "a/b.tar", "x.tar\n", "..", "", "CON", "\x1b[2J.tar", "x" * 300 + ".tar"]
TYPES = [pa.int32(), pa.float64(), pa.string(), pa.binary(), pa.bool_(), pa.large_string(), pa.timestamp("us")]
# What reading a hostile index of a few megabytes may take.
MEMORY_BYTES, SECONDS = 1_000_000_000, 20.0
RUN_LENGTH_ROWS = 3_000_000


def flip(data: bytes, draw: random.Random) -> bytes:
    """One to four bits changed."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """The end, the beginning or a place in the middle is gone."""
    at, length = draw.randrange(len(data)), draw.randint(1, 200)
    return draw.choice([data[:at], data[at:], data[:at] + bytes(length) + data[at + length :], data + data[:at]])


def not_parquet(data: bytes, draw: random.Random) -> bytes:
    """Something else."""
    return draw.choice([b"", b"PAR1", b"PAR1PAR1", b"{}", data[:4] + draw.randbytes(500) + data[-8:], data[-8:]])


def _table(data: bytes) -> tuple[pa.Table, dict]:
    table = pq.read_table(pa.BufferReader(data))
    return table.replace_schema_metadata(None), json.loads(table.schema.metadata[b"avpipe"])


def _bytes(table: pa.Table, metadata: object, **more) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"avpipe": json.dumps(metadata)}), sink, **more)
    return sink.getvalue().to_pybytes()


def column_of_another_type(data: bytes, draw: random.Random) -> bytes:
    """A column of nulls, or of other values, of any type."""
    table, metadata = _table(data)
    name, kind = draw.choice(table.column_names), draw.choice([*TYPES, pa.list_(pa.int64())])
    try:
        column = pa.array([draw.choice(ODD_VALUES) for _ in range(len(table))], kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        column = pa.nulls(len(table), kind)
    return _bytes(table.set_column(table.column_names.index(name), name, column), metadata)


def column_gone(data: bytes, draw: random.Random) -> bytes:
    """A column is gone, there twice, or has another name."""
    table, metadata = _table(data)
    name = draw.choice(table.column_names)
    names = [draw.choice(["x", ""]) if other == name else other for other in table.column_names]
    twice = table.append_column(name, table[name])
    return _bytes(draw.choice([table.drop_columns([name]), table.rename_columns(names), twice]), metadata)


def other_rows(data: bytes, draw: random.Random) -> bytes:
    """Values of one row are those of another, or odd; or rows are gone or there twice."""
    table, metadata = _table(data)
    rows = table.to_pylist()
    row, name = draw.randrange(len(rows)), draw.choice(table.column_names)
    kind = table.schema.field(name).type
    odd = [-1, 0, 7, 2**62, 2**63 - 1] if kind == pa.int64() else ODD_NAMES if kind == pa.string() else [[], None]
    change = draw.choice(["swap", "odd", "gone", "twice"])
    if change == "swap":
        rows[row][name] = rows[row - 1][name]
    elif change == "odd":
        rows[row][name] = draw.choice(odd)
    else:
        rows = [r for r in rows if r is not rows[row]] if change == "gone" else [*rows, rows[row]]
    return _bytes(pa.Table.from_pylist(rows, table.schema), metadata)


def other_metadata(data: bytes, draw: random.Random) -> bytes:
    """A value of the metadata, or of a shard in them, is another."""
    table, metadata = _table(data)
    place = draw.choice([metadata, metadata["extract"], *metadata["shards"]])
    place[draw.choice(sorted(place))] = draw.choice([*ODD_VALUES, *ODD_NAMES])
    return _bytes(table, draw.choice([metadata, metadata, metadata, [metadata], draw.choice(ODD_VALUES)]))


def huge(data: bytes, draw: random.Random) -> bytes:
    """Millions of equal rows, or one endless text many times, in a small file."""
    table, metadata = _table(data)
    if draw.random() < 0.5:
        rows = pa.array([0] * RUN_LENGTH_ROWS)
        return _bytes(table.take(rows), metadata, compression="zstd")
    text = pa.array(["x" * 5_000_000]).take(pa.array([0] * 300))
    columns = [text if name == draw.choice(["label", "label", "clip_id"]) else table[name].take(pa.array([0] * 300))
               for name in table.column_names]  # fmt: skip
    return _bytes(pa.table(columns, table.column_names), metadata, compression="zstd")


# With how often each is drawn: what is huge takes a second to make.
KINDS = {flip: 60, cut: 10, not_parquet: 4, column_of_another_type: 20, column_gone: 10, other_rows: 40,
         other_metadata: 40, huge: 1}  # fmt: skip


def _true_parts(data: bytes) -> tuple[pa.Table, dict] | None:
    try:
        return _table(data)
    except Exception:
        return None


def outcome_of(folder: Path, same: bool) -> tuple[str, str | None]:
    """(what happened to the index in `folder`, what should not have); `same`: it says what the true one says."""
    said = []
    for name, read in (("verify", _verify), ("train", _train), ("status", lambda at: read_clip_ids(at / INDEX))):
        begin = time.monotonic()
        try:
            problems = read(folder)
            said.append("reported" if problems and name == "verify" else "accepted")
        except AvpipeError as error:
            said.append("refused")
            if "\n" in str(error).strip():
                return f"{name} refused", f"more than one line: {error}"
        except Exception:
            return f"{name} failed", traceback.format_exc()
        if time.monotonic() - begin > SECONDS:
            return f"{name} slow", f"{time.monotonic() - begin:.0f} s"
    outcome = f"verify {said[0]}, train {said[1]}"
    silent = not same and said[0] == "accepted"
    return outcome, "another index is called the true one" if silent else None


def _verify(folder: Path) -> list:
    return verify.verify(folder, workers=1).problems


def _train(folder: Path) -> None:
    shards = open_shards(folder)
    for number in range(min(len(shards), 20)):
        for member in shards.offset:
            shards.read(number, member)
        shards.boxes[number]


def attack(folder: Path, rounds: int, seed: int, tally: Tally) -> None:
    """Replace the index in `folder`, a copy of some shards, so often by a hostile one."""
    draw, index = random.Random(seed), folder / INDEX
    data = index.read_bytes()
    truth = _table(data)
    verify.run_parts = lambda function, parts, workers: map(function, parts)  # in this process
    for number in range(rounds):
        kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
        hostile = kind(data, draw)
        index.write_bytes(hostile)
        same, before = _true_parts(hostile) == truth, _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        outcome, fault = outcome_of(folder, same)
        if (taken := _memory("VmHWM") - before) > MEMORY_BYTES:
            fault = f"{taken / 1e9:.1f} GB of memory"
        tally.note(f"{kind.__name__}: {outcome}", fault and f"round {number} of seed {seed}: {fault}")
    index.write_bytes(data)


def _memory(name: str) -> int:
    """Bytes of memory that this process takes (VmRSS), or has taken at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> int:
    """Make shards of a small corpus, then attack their index."""
    given = options(__doc__.splitlines()[0], rounds=600).parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        root, corpus = Path(temporary) / "root", Path(temporary) / "corpus"
        lists = ["manifest", "build", "--lists", corpus / "lists"]
        commands = [["synth", corpus, "--clips", 8, "--classes", 2], lists, ["download", "--from", corpus / "clips"]]
        commands += [["extract"], ["shard", "--split", "synth_test"]]
        succeed(*(["--root", root, *command] for command in commands))
        folder = shutil.copytree(root / "shards/synth_test", Path(temporary) / "shards")
        attack(folder, given.rounds, given.seed, tally)
    return tally.finish()


if __name__ == "__main__":
    sys.exit(main())
