"""Where the tests find material that is not part of the repository; None where it is absent, and such tests skip."""

import os
from pathlib import Path


def _folder(path: Path) -> Path | None:
    return path.resolve() if path.is_dir() else None


_shared = Path(os.environ.get("AVPIPE_SHARED", Path(__file__).resolve().parents[1] / "../shared"))

# The official lists (metadata/) and sample clips (clips/).
SHARED = _folder(_shared)
# Numbers obtained by running the published code: one set of .npz files per seed.
PARITY = _folder(Path(os.environ.get("AVPIPE_PARITY") or _shared / "parity"))
