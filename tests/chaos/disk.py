"""Full disks, disks without inodes and read-only ones under every command: one sentence, and with room all is done.

sudo python tests/chaos/disk.py --rounds 4 --seed 1     # it mounts small file systems
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from common import Tally, fault_of, leftovers, options, start, succeed, wait

EXPORT = ("export", "--split", "synth_test", "--format")
# What each command needs of a finished root, and its arguments of (root, corpus).
COMMANDS: dict[str, tuple[tuple[str, ...], Callable[[Path, Path], list]]] = {
    "build": ((), lambda root, corpus: ["manifest", "build", "--lists", corpus / "lists"]),
    "derive": (("manifest",), lambda root, _: ["manifest", "derive", "some", "--of", "synth_train", "--clips", 2]),
    "lists": (("manifest",), lambda root, _: ["export", "--split", "synth_test", "--format", "csv", root / "out"]),
    "download": (("manifest",), lambda root, corpus: ["download", "--from", corpus / "clips"]),
    "import": (("manifest",), lambda root, corpus: ["import", corpus / "clips"]),
    "extract": (("manifest", "clips", "ledger"), lambda root, _: ["extract", "--workers", 1]),
    "shard": (("manifest", "cache"), lambda root, _: ["shard", "--split", "synth_train", "--workers", 1]),
    "send": (("manifest", "cache"), lambda root, _: ["shard", "--split", "synth_train", "--to", root / "out"]),
    "verify": (("shards",), lambda root, _: ["verify", root / "shards/synth_train", "--workers", 1]),
    "folders": (("manifest", "cache"), lambda root, _: [*EXPORT, "folders", root / "out"]),
    "coco": (("manifest", "cache"), lambda root, _: [*EXPORT, "coco", root / "out"]),
    "hdf5": (("manifest", "cache"), lambda root, _: [*EXPORT, "hdf5", root / "out"]),
    "synth": ((), lambda root, _: ["synth", root / "made", "--clips", 2, "--classes", 2]),
    "status": (("manifest", "ledger", "shards"), lambda root, _: ["status"]),
    "show": (("manifest",), lambda root, _: ["manifest", "show", "synth_train"]),
    "eval": (("manifest", "shards"), lambda root, _: ["eval", "--split", "synth_test", "--baseline", "centre"]),
}
DISKS = ("full", "nearly full", "without inodes", "read-only")
NEEDED_BYTES = 60_000_000  # for what any of the commands makes


def _mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A small file system at `folder`; False where none may be mounted."""
    folder.mkdir(exist_ok=True)
    there = os.geteuid() == 0 and _mount("-t", "tmpfs", "-o", "size=2g", "tmpfs", folder)
    try:
        yield there
    finally:
        if there:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def spoil(folder: Path, how: str, draw: random.Random) -> None:
    """Make the disk at `folder` full, without inodes, or read-only."""
    files = [path for path in folder.rglob("*") if not path.is_symlink()]
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in files if path.is_file())
    room = {"full": 0, "nearly full": 4096 * draw.randint(1, 120)}.get(how, NEEDED_BYTES)
    inodes = len(files) + 1 + draw.randint(0, 3) if how == "without inodes" else 100_000
    settings = f"remount,size={max(used + room, 4096)},nr_inodes={inodes}{',ro' if how == 'read-only' else ''}"
    assert _mount("-o", settings, folder), settings


def mend(folder: Path) -> None:
    """Give room again."""
    assert _mount("-o", f"remount,rw,size={2**31},nr_inodes=100000", folder)


def attack(name: str, how: str, done: Path, corpus: Path, folder: Path, draw: random.Random, tally: Tally) -> None:
    """Run a command on a spoilt disk in `folder`, then again on a mended one."""
    needs, command = COMMANDS[name]
    with disk(folder) as there:
        if not there:
            return tally.note("not tried: no file system may be mounted here")
        root = folder / "root"
        root.mkdir()
        for part in needs:
            shutil.copytree(done / part, root / part)
        spoil(folder, how, draw)
        code, _, errors = wait(start("--root", root, *command(root, corpus)))
        sentence = [line for line in errors.splitlines() if line.startswith("avpipe: ")][-1:]
        tally.note(f"{name}, {how}: {'done' if code == 0 else sentence}", fault_of(code, errors, (0, 1)))
        mend(folder)
        if code != 0:  # what is done is done; an export refuses to be done again
            code, _, errors = wait(start("--root", root, *command(root, corpus)))
        fault = fault_of(code, errors)
        if fault is None and (left := leftovers(root)):
            fault = f"left behind: {left}"
        tally.note("with room: done", fault and f"{name} after {how}: {fault}")


def main() -> int:
    """Make a small corpus, take it through all stages, then try every command on every disk."""
    parser = options(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    given = parser.parse_args()
    tally, draw = Tally(), random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        corpus, done = Path(temporary) / "corpus", Path(temporary) / "done"
        stages = [COMMANDS[name][1](done, corpus) for name in ("build", "download", "extract", "shard")]
        commands = [["synth", corpus, "--clips", 6, "--classes", 2], *stages, ["shard", "--split", "synth_test"]]
        succeed(*(["--root", done, *command] for command in commands))
        for _ in range(given.rounds):
            for name in given.commands:
                for how in DISKS:
                    attack(name, how, done, corpus, Path(temporary) / "disk", draw, tally)
                print(f"{name} done", flush=True)
    return tally.finish()


if __name__ == "__main__":
    sys.exit(main())
