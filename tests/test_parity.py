"""All five methods, the features and the frames against numbers that the published code gave.

`AVPIPE_PARITY=DIR pytest tests/test_parity.py` checks any folder of files `<kind>_s<seed>.npz` of the form that the
parity folder's README states; the sizes are those of each file. The largest deviations are printed at the end.
"""

import os
import re
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import ez_vsl, features, lvs, ssl_tie, sspl
from parity.compare import Comparison
from parity.table import PROPERTY
from parity_recipes import load
from shared_files import PARITY

# A kind, or a pattern of kinds, and its check: a function that makes the comparisons of one file in one precision.
KINDS = {
    "lvs_forward": lvs.forward,
    "lvs_loss": lvs.loss,
    "ezvsl_forward": ez_vsl.forward,
    "ezvsl_loss": ez_vsl.loss,
    "marginnce_loss": ez_vsl.margin_nce,
    "ssltie_forward": ssl_tie.forward,
    "ssltie_equiv_*": ssl_tie.equivariance,
    "sspl_forward": sspl.forward,
    "sspl_loss": sspl.loss,
    "audio_lvs": features.audio_lvs,
    "audio_ezvsl": features.audio_ezvsl,
    "audio_ssltie": features.audio_ssltie,
    "audio_sspl": features.audio_sspl,
    "image_preproc": features.image_preproc,
}

# Kinds with tests of their own in parity_eval, which are collected here.
EVALUATION = ("eval_protocols", "eval_slavc")
pytest.register_assert_rewrite("parity_eval")
from parity_eval import *  # noqa: E402, F403

# Kinds that run whole networks; those of SSPL take longest, and what it does behind its extractors is in sspl_loss.
MARKS = {"*_forward": pytest.mark.heavy, "ssltie_equiv_*": pytest.mark.heavy, "sspl_loss": pytest.mark.heavy}
SLOW = ("sspl_forward-*", "sspl_loss-float64", "*_forward-float64", "ssltie_equiv_half_*")

# Kinds whose numbers are in double precision without the suffix `_f64`.
DOUBLE_THROUGHOUT = ("marginnce_loss",)

NAMED = os.environ.get("AVPIPE_PARITY")
FILES = sorted(PARITY.glob("*.npz"), reverse=True) if PARITY else []


def kind_of(file: Path) -> str:
    return re.sub(r"_s\d+$", "", file.stem)


def check_of(kind: str):
    return next((check for pattern, check in KINDS.items() if fnmatchcase(kind, pattern)), None)


def holds_double(file: Path) -> bool:
    try:
        with np.load(file) as archive:
            return any(name.endswith("_f64") for name in archive.files)
    except Exception:  # whatever is wrong with the file, the test in single precision shows it
        return False


def cases() -> list:
    """Every file in each precision that it holds; a file of a kind that nobody knows is a skip with its reason."""
    params = []
    for file in FILES:
        kind = kind_of(file)
        if kind in EVALUATION:
            continue
        if check_of(kind) is None:
            reason = f"{file.name}: no check is known for the kind {kind!r}"
            warnings.warn(reason, stacklevel=1)
            params.append(pytest.param(file, None, id=file.stem, marks=pytest.mark.skip(reason=reason)))
            continue
        double = kind in DOUBLE_THROUGHOUT or holds_double(file)
        for dtype in (torch.float64, torch.float32) if double else (torch.float32,):
            precision = str(dtype).removeprefix("torch.")
            marks = [mark for pattern, mark in MARKS.items() if fnmatchcase(kind, pattern)]
            marks += [pytest.mark.slow for pattern in SLOW if fnmatchcase(f"{kind}-{precision}", pattern)]
            params.append(pytest.param(file, dtype, id=f"{file.stem}-{precision}", marks=marks))
    absent = pytest.mark.skip(reason="no parity files: set AVPIPE_PARITY to their folder")
    return params or [pytest.param(None, None, id="no-files", marks=absent)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("file", "dtype"), cases())
def test_file(file, dtype, request):
    kind = kind_of(file)
    compare = Comparison(kind, load(file), dtype)
    try:
        check_of(kind)(compare)
    finally:
        request.node.user_properties.append((PROPERTY, compare.properties()))
    assert compare.records, f"{file.name}: nothing was compared"
    failures = "\n".join(compare.failures())
    assert not failures, f"{file.name}:\n{failures}"
    for what, keys in (("nothing is compared with", compare.left_out()), ("it does not hold", compare.absent)):
        if keys:
            warnings.warn(f"{file.name}: {what} {', '.join(keys)}", stacklevel=1)


def test_there_are_files_of_known_kinds():
    """A folder that was named is meant to be checked; the one beside the repository may be absent."""
    known = [file.name for file in FILES if check_of(kind_of(file)) or kind_of(file) in EVALUATION]
    if NAMED:
        assert PARITY, f"AVPIPE_PARITY: {NAMED} is no folder"
        assert known, f"AVPIPE_PARITY: {NAMED} holds no file <kind>_s<seed>.npz of a known kind"
    elif not known:
        pytest.skip("no parity files: set AVPIPE_PARITY to their folder")
