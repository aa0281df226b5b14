"""Where a quantity of the port meets its published number: recorded for the table, and held to a tolerance."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

# What a port in double precision is held to, relative to the largest magnitude of the quantity.
DOUBLE = 1e-9

# What files say about themselves, and what the checks read as input rather than compare.
NOT_RESULTS = {"seed", "B", "T", "meta", "av", "kornia", "state_spec", "obj_state_spec", "pyrandom_seed"}


@dataclass(frozen=True)
class Record:
    """One comparison; what the table is made of."""

    kind: str
    quantity: str
    dtype: str
    deviation: float
    """Largest absolute difference."""
    relative: float
    """The same, relative to the largest magnitude."""
    tolerance: str
    share: float
    """Largest share of what is tolerated that an entry took; above 1 the comparison fails."""


class Comparison:
    """The comparisons of one file in one precision.

    `compare(key, ours, …)` looks the published number up, in double precision under `<key>_f64`; where the file has
    none under that name, nothing is compared.
    """

    def __init__(self, kind: str, golden: dict[str, np.ndarray], dtype: torch.dtype):
        self.kind, self.golden, self.dtype = kind, golden, dtype
        self.records: list[Record] = []
        self.read: set[str] = set()
        self.absent: list[str] = []

    @property
    def single(self) -> bool:
        return self.dtype == torch.float32

    def holds(self, *stems: str) -> bool:
        """Whether the file has anything in this precision under a name that begins so."""
        return any(key.startswith(stems) and key.endswith("_f64") != self.single for key in self.golden)

    def __call__(
        self, key: str, ours, part: Callable | None = None, double: dict | None = None, **tolerance: float
    ) -> None:
        """Compare with the number of the file; `tolerance` is for single precision, `double` another one than DOUBLE of
        the largest magnitude for double precision, both as `against` takes them.

        `part` cuts out of an array of ours what the file holds.
        """
        stored = key if self.single else f"{key}_f64"
        if stored not in self.golden:
            if self.single:
                self.absent.append(key)
            return
        theirs = self.golden[stored]
        self.read.add(stored)
        ours = ours if part is None else part(ours)
        self.against(key, ours, theirs, **(tolerance if self.single else double or {"largest": DOUBLE}))

    def against(
        self, quantity: str, ours, theirs, *, absolute: float = 0.0, each: float = 0.0, largest: float = 0.0
    ) -> None:
        """Compare arrays, axes of length one aside.

        Tolerated are the sum of: an `absolute` difference, a share of `each` entry, a share of the `largest` one.
        """
        ours, theirs = (np.squeeze(as_double(value)) for value in (ours, theirs))
        parts = {"abs": absolute, "rel": each, "of largest": largest}
        text = " + ".join(f"{value:g} {name}" for name, value in parts.items() if value) or "equal"
        if ours.shape != theirs.shape:
            text += f", shapes {ours.shape} and {theirs.shape}"
            difference = peak = share = float("inf")
        else:
            differences, sizes = np.abs(ours - theirs), np.abs(theirs)
            difference, peak = float(np.max(differences, initial=0)), float(np.max(sizes, initial=0))
            allowed = absolute + each * sizes + largest * peak
            with np.errstate(divide="ignore", invalid="ignore"):
                share = float(np.max(np.where(differences == 0, 0.0, differences / allowed), initial=0))
        relative = difference / peak if peak else difference
        share = share if np.isfinite(share) else float("inf")
        precision = str(self.dtype).removeprefix("torch.")
        self.records.append(Record(self.kind, quantity, precision, difference, relative, text, share))

    def exempt(self, *keys: str) -> None:
        """Numbers of the file that are not compared, for a reason stated where this is called."""
        self.read.update(keys)

    def properties(self) -> list[dict]:
        """The records as plain values, which a report can carry from a worker to the terminal."""
        return [asdict(record) for record in self.records]

    def left_out(self) -> list[str]:
        """Numbers of the file, in this precision, that nothing was compared with."""
        rest = set(self.golden) - self.read - NOT_RESULTS
        return sorted(k for k in rest if k.endswith("_f64") != self.single and not k.endswith(("_check", "_f16")))

    def failures(self) -> list[str]:
        return [
            f"{record.quantity}: off by {record.deviation:.3g}, {record.relative:.3g} of the largest; "
            f"tolerated {record.tolerance}"
            for record in self.records
            if not record.share <= 1
        ]


def as_double(value) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().double().numpy()
    return np.asarray(value, dtype=np.float64)
