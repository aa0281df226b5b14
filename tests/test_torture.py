"""Two hundred files that are odd in every way a format allows: the right picture and sound, or a refusal."""

import pytest
import torture

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_odd_files_come_out_right_or_are_refused(seed, tmp_path):
    said = []
    outcomes = torture.run(50, seed, tmp_path, said.append)
    assert not said
    assert outcomes["right"] > 25 and outcomes["refused"] > 2
