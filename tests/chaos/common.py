"""What the attack programs share: their options, the command line under watch, the count of what came out.

Every program is seeded and bounded, prints its counts, and ends with 1 on anything that should not be.
"""

import argparse
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# Longer than any command on a few clips takes on a busy machine.
HANGS_S = 120.0
LEFTOVER = re.compile(r"\..*\.tmp|\..*\.partial|avpipe-.*")


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    """`--rounds` and `--seed`; a program adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seed", type=int, default=0)
    return parser


@dataclass
class Tally:
    """How often what came out, and what should not have."""

    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def note(self, outcome: str, fault: str | None = None) -> None:
        """Count an outcome; with `fault`, as one that should not be."""
        self.counts[outcome] += 1
        if fault is not None:
            self.faults.append(f"{outcome}: {fault}")
            print(f"FAULT {self.faults[-1]}", flush=True)

    def finish(self) -> int:
        """Print everything; returns the exit code."""
        for outcome, count in self.counts.most_common():
            print(f"{count:6,} {outcome}")
        print(f"{sum(self.counts.values()):,} in all, {len(self.faults)} faults")
        return 1 if self.faults else 0


def start(*command: object, program: str | None = None, **more) -> subprocess.Popen:
    """The command line, or Python code that ends in it, in a process group of its own."""
    head = ["-c", program] if program else ["-m", "avpipe.train.cli"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment} | more
    return subprocess.Popen([sys.executable, *head, *map(str, command)], start_new_session=True, **settings)


def wait(process: subprocess.Popen) -> tuple[int | None, str, str]:
    """(exit code or None where it hung and was killed, standard output, standard error), when nobody holds these."""
    try:
        output, errors = process.communicate(timeout=HANGS_S)
        return process.returncode, output, errors
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        return None, output, errors


def succeed(*commands: list, program: str | None = None) -> None:
    """Run commands one after the other, each of which must end well."""
    for command in commands:
        code, _, errors = wait(start(*command, program=program))
        assert code == 0, errors


def fault_of(code: int | None, errors: str, allowed: tuple[int, ...] = (0,)) -> str | None:
    """What is wrong with how a command ended: a hang, a crash, a traceback, a refusal without a sentence."""
    if code is None:
        return f"hung for {HANGS_S:.0f} s: {errors[-500:]}"
    if "Traceback" in errors or "Exception ignored" in errors or code == 70:
        return f"a traceback: {errors[-1500:]}"
    if code not in allowed:
        return f"exit code {code}: {errors[-500:]}"
    if code == 1 and "avpipe: " not in errors:
        return f"no sentence: {errors[-500:]}"
    return None


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders anywhere below `folder`."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if LEFTOVER.fullmatch(path.name))


def hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 by path of the files below `folder`, but hidden ones."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
