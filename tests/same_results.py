"""What avpipe's commands make, as digests: run before and after a change that must alter no result, and compared.

    .venv/bin/python tests/same_results.py .venv/bin/avpipe FOLDER [--clips DIR --lists DIR] > digests.json
    .venv/bin/python tests/same_results.py --compare before.json after.json

Only commands are called and only files are read, so that the code may be arranged anew between the two runs. The same
machine and the same packages are taken for granted: other ones give other digits. Takes about ten minutes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import torch
import torchvision
from digests import columns, compare, digest, flat, read_table, sha256

FEATURES = "logspec,logspec-10s,logmel,tie-mel,vggish"
RECIPES = (
    "lvs", "lvs-small", "ez-vsl", "ez-vsl-small", "marginnce", "marginnce-small", "ssl-tie", "ssl-tie-small", "sspl",
    "sspl-small", "sspl-without-pcm", "vgg-h",
)  # fmt: skip
# 24 training clips make 12 steps of 2 an epoch: 24 steps. The PCM of `sspl` has layers for 224 pixels alone.
SMALL = ("batch_size=2", "epochs=2", "patience=0")
EXPORTS = ("folders", "hdf5", "coco", "csv", "txt", "ssl-tie-train", "ssl-tie-test")
TRAIN, TEST = "synth_train", "synth_test"


class Results:
    """The digests so far, of commands that run in one folder, so that every path in what they write is relative."""

    def __init__(self, avpipe: Path, folder: Path):
        self._avpipe, self.folder = avpipe.absolute(), folder
        self.digests: dict[str, object] = {}
        # One thread a process: the order of additions, and with it the last digits, must not follow the cores.
        self._environment = os.environ | {"AVPIPE_ROOT": "root", "OMP_NUM_THREADS": "1"}

    def run(self, *words: str, root: str = "root") -> None:
        """Run a command; what it prints is kept under its words, numbers and texts as they are."""
        print(f"$ avpipe {' '.join(words)}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [self._avpipe, *words], cwd=self.folder, env=self._environment | {"AVPIPE_ROOT": root}, capture_output=True
        )
        if done.returncode:
            sys.exit(f"avpipe {' '.join(words)} ended with {done.returncode}: {done.stderr.decode()}")
        key = f"{root} $ {' '.join(words)}"
        if "--json" in words:
            self.digests |= flat(key, json.loads(done.stdout))
        elif words[0] != "train":  # tells how fast it was; its figures are in the files
            self.digests[key] = sha256(done.stdout)

    def files(self, *patterns: str) -> None:
        """Take the digests of the files that the patterns name, below the folder."""
        for pattern in patterns:
            found = sorted(path for path in self.folder.glob(pattern) if path.is_file() and path.name != ".lock")
            if not found:
                sys.exit(f"{self.folder} holds no {pattern}")
            for path in found:
                self.digests |= flat(str(path.relative_to(self.folder)), digest(path))

    def ledger(self, folder: str) -> None:
        """Take the digests of what a ledger holds: its files are named after the moment, rows come as they are done."""
        tables = [read_table(path) for path in (self.folder / folder).glob("*.parquet")]
        self.digests |= flat(folder, columns(pa.concat_tables(tables).sort_by("clip_id")))


def made_up(results: Results) -> None:
    """Lists, clips, samples, shards of the synthetic corpus, and what is told and written of them."""
    results.run("synth", "source", "--clips", "30", "--json")
    results.run("manifest", "build", "--lists", "source/lists", "--json")
    results.run("download", "--from", "source/clips", "--json")
    results.run("extract", "--features", FEATURES, "--json")
    results.run("extract", "--split", TEST, "--workers", "1", "--json")
    for split in (TRAIN, TEST):
        results.run("shard", "--split", split, "--features", FEATURES, "--to", "sent", "--json")
        results.run("verify", f"root/shards/{split}", "--json")
        results.run("manifest", "show", split, "--json")
    results.run("manifest", "audit", "--duplicates", "--features", FEATURES, "--json")
    results.run("manifest", "derive", "half", "--of", TRAIN, "--clips", "12", "--json")
    results.run("manifest", "derive", "rest", "--of", TRAIN, "--without", "half", "--json")
    results.run("manifest", "derive", "few", "--of", TEST, "--clips", "3", "--whole-videos", "--json")
    results.run("status", "--json")
    for name in EXPORTS:
        results.run("export", f"exported/{name}", "--split", TEST, "--format", name, "--json")
    # What was exported is imported again, by a root that knows the lists and has no clip.
    results.run("manifest", "build", "--lists", "source/lists", "--json", root="other")
    results.run("import", "exported/folders", "--json", root="other")
    results.run("import", "source/clips", "--json", root="third")
    results.files("source/**/*", "root/manifest/*", "root/cache/**/*", "root/shards/**/*", "sent/**/*")
    results.files("exported/**/*", "other/manifest/*", "other/cache/**/*", "third/clips/**/*")
    for ledger in sorted((results.folder / "root" / "ledger").iterdir()):
        results.ledger(f"root/ledger/{ledger.name}")


def trained(results: Results) -> None:
    """Losses and weights of every recipe; of shards with and without index, on this disk and at an address."""
    for recipe in RECIPES:
        init = () if recipe == "vgg-h" else ("--init", "random")
        train(results, recipe, f"root/shards/{TRAIN}", "--recipe", recipe, *init)
    settings = ("--set", "accumulate=2", "--set", "clip_norm=1", "--select-on", f"root/shards/{TEST}")
    train(results, "chosen", f"root/shards/{TRAIN}", "--recipe", "ez-vsl-small", *settings)
    train(results, "held-back", f"root/shards/{TRAIN}", "--recipe", "lvs-small", "--set", "validation=0.2")
    shutil.copytree(results.folder / "root" / "shards" / TRAIN, results.folder / "bare")
    (results.folder / "bare" / "index.parquet").unlink()
    train(results, "bare", "bare", "--recipe", "lvs-small")
    train(results, "one-tar", f"bare/{TRAIN}-{{000000..000000}}.tar", "--recipe", "sspl-small")
    sent = (results.folder / "sent" / TRAIN).absolute().as_uri()
    train(results, "sent", sent, "--recipe", "ssl-tie-small", "--cache-gb", "0")
    results.files("root/runs/*/log.csv", "root/runs/*/validation.csv", "root/runs/*/*.pt")


def train(results: Results, name: str, shards: str, *words: str) -> None:
    """Run a training of 24 small steps under a name."""
    small = (*SMALL, f"image_px={224 if name == 'sspl' else 64}")
    settings = (word for setting in small for word in ("--set", setting))
    results.run("train", "--shards", shards, "--name", name, "--workers", "1", *words, *settings)


def scored(results: Results) -> None:
    """Scores under every protocol, and all that is made of trained networks."""
    weights = results.folder / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), weights)  # the published ones need not be on this machine
    models = [("--checkpoint", name) for name in ("lvs", "ez-vsl-small", "marginnce", "ssl-tie", "sspl", "chosen")]
    models += [("--baseline", "centre"), ("--baseline", "random-init")]
    models += [("--baseline", "object", "--weights", weights.name)]
    for model in models:
        results.run("eval", "--split", TEST, "--protocol", "all", "--json", *model)
    for name in ("lvs", "ez-vsl-small"):
        results.run(
            "eval", "--split", TEST, "--checkpoint", name, "--object-guided", "--weights", weights.name, "--json"
        )
        results.run("report", name, "sspl", "--split", TEST, "-o", f"{name}.html", "--clips", "2", "--json")
    results.run("eval", "--split", TEST, "--checkpoint", "lvs", "--only", "few", "--json")
    for model in (("--checkpoint", "lvs"), ("--checkpoint", "vgg-h"), ("--baseline", "random-init")):
        results.run("retrieve", "--split", TRAIN, "--json", *model)
    video = sorted((results.folder / "source" / "clips").glob("*.mp4"))[0].relative_to(results.folder)
    outputs = ("-o", "where.mp4", "--picture", "where.png", "--maps", "where.npz")
    results.run("localize", str(video), *outputs, "--checkpoint", "ez-vsl-small", "--json")
    results.run("reproduce", "--json")
    results.run("reproduce", "--plan", "--json")
    results.run("reproduce")
    results.files("root/runs/*/eval/**/*", "root/runs/*/retrieval/**/*", "*.html", "where.*")


def real(results: Results, clips: Path, lists: Path) -> None:
    """The way of real clips from the official lists to shards."""
    results.run("manifest", "build", "--lists", str(lists), "--json", root="real")
    results.run("download", "--from", str(clips), "--json", root="real")
    results.run("extract", "--json", root="real")
    results.run("shard", "--split", "vggss", "--json", root="real")
    for baseline in ("centre", "random-init"):
        results.run("eval", "--split", "vggss", "--baseline", baseline, "--protocol", "all", "--json", root="real")
    results.run("status", "--json", root="real")
    results.run("manifest", "audit", "--json", root="real")
    results.run("manifest", "export", "--out", "real-lists", root="real")
    results.files("real/manifest/*", "real/cache/**/*", "real/shards/**/*", "real-lists/**/*")
    results.files("real/runs/*/eval/**/*")
    results.ledger("real/ledger/download")


def main() -> None:
    """Print the digests, or what differs between two files of them."""
    parser = argparse.ArgumentParser(description="Digests of what avpipe's commands make.")
    parser.add_argument("avpipe", type=Path, nargs="?", help="the executable")
    parser.add_argument("folder", type=Path, nargs="?", help="new folder to work in")
    parser.add_argument("--clips", type=Path, help="real clips, <clip_id>.mp4")
    parser.add_argument("--lists", type=Path, help="official lists that name them")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        sys.exit(bool(compare(*options.compare)))
    options.folder.mkdir(parents=True)
    results = Results(options.avpipe, options.folder)
    if options.clips:
        real(results, options.clips.absolute(), options.lists.absolute())
    for part in (made_up, trained, scored):
        part(results)
    json.dump(results.digests, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
