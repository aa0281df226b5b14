"""The Python in the README runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.heavy
@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_run(number, done_root, capsys):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    code = examples[number].replace("demo/shards", str(done_root.shards)).replace("image_px=112", "image_px=64")
    code = code.replace("data/shards/vggss/vggss-", f"{done_root.shards}/synth_test/synth_test-")
    names = {}
    exec(code, names)
    if number == 0:
        assert names["loss"].isfinite() and names["maps_BHW"].shape == (16, 4, 4)
    else:
        assert "(257, 200)" in capsys.readouterr().out
