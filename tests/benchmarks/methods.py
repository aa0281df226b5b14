"""Every method trained from scratch by its small recipe on a synthetic corpus, scored, and asked whether it listens.

    python tests/benchmarks/methods.py FOLDER [--clips 500] [--json FILE] [--set key=value …]

Each step is an avpipe command that is printed; run again in the same folder, finished steps are found finished.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

RECIPES = ("lvs-small", "marginnce-small", "ez-vsl-small", "ssl-tie-small", "sspl-small")
FEATURES = "logspec,tie-mel,vggish"


def avpipe(*arguments: str) -> None:
    """Show and run a command."""
    print(f"$ avpipe {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "avpipe.train.cli", *arguments], check=True)


def answer(*arguments: str) -> dict:
    """Show and run a command; what it prints as JSON."""
    print(f"$ avpipe {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "avpipe.train.cli", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def corpus(folder: Path, clips: str) -> None:
    """Clips, manifest and shards with the features of all methods."""
    source = folder / "source"
    avpipe("synth", str(source), "--clips", clips)
    avpipe("manifest", "build", "--lists", str(source / "lists"))
    avpipe("download", "--from", str(source / "clips"))
    avpipe("extract", "--features", FEATURES)
    for split in ("synth_train", "synth_test"):
        avpipe("shard", "--split", split, "--features", FEATURES)


def row(folder: Path, recipe: str, changes: list[str]) -> dict:
    """Train and score one recipe."""
    words = [word for change in changes for word in ("--set", change)]
    shards = str(folder / "shards" / "synth_train")
    trained = answer("train", "--shards", shards, "--recipe", recipe, "--name", recipe, *words)
    scored = answer("eval", "--split", "synth_test", "--checkpoint", recipe)
    return {
        "recipe": recipe,
        "ciou": scored["ciou"],
        "floor": scored["floor"]["ciou"],
        "auc": scored["auc"],
        "pointing": scored["pointing"],
        "drop_wrong_audio": scored["wrong_audio"]["drop"],
        "drop_silence": scored["silence"]["drop"],
        "clips_per_s": trained["clips_per_s"],
        "seconds": trained["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", default="500", help="number of clips, a fifth of them held out")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="changes to every recipe")
    options = parser.parse_args()
    os.environ["AVPIPE_ROOT"] = str(options.folder)
    corpus(options.folder, options.clips)
    rows = [row(options.folder, recipe, options.changes) for recipe in options.recipes.split(",")]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    table = Table("recipe", "cIoU@0.5", "AUC", "pointing", "drop, wrong sound", "drop, silence", "clips/s", "s")
    for found in rows:
        numbers = [found[key] for key in ("ciou", "auc", "pointing", "drop_wrong_audio", "drop_silence")]
        speed = [f"{found['clips_per_s']:.1f}", f"{found['seconds']:.0f}"]
        table.add_row(found["recipe"], *(f"{number:.3f}" for number in numbers), *speed)
    console = Console(width=110)
    console.print(table)
    console.print(f"floor of cIoU@0.5, a disc in the middle: {rows[0]['floor']:.3f}")


if __name__ == "__main__":
    main()
