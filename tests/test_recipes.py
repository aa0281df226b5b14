"""Recipes and their changes from the command line."""

import json

import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.models.checkpoint import recipe_of
from avpipe.train.models.recipes import RECIPES, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_brings_every_recipe_back(name):
    recipe = get_recipe(name, [])
    assert recipe_of({"recipe": json.loads(json.dumps(recipe.record()))}) == recipe and name.startswith(recipe.method)


def test_changes_reach_the_recipe_and_the_method():
    recipe = get_recipe("lvs", ["batch_size=8", "learning_rate=3e-4", "spec_pool=2", "init=random"])
    assert (recipe.batch_size, recipe.learning_rate) == (8, 3e-4)
    assert (recipe.options.spec_pool, recipe.options.init) == (2, "random")
    assert get_recipe("lvs", []).batch_size == 256


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("lvz", [], "no recipe 'lvz'; did you mean 'lvs'"),
        ("lvs", ["batch_sise=8"], "no such setting; did you mean 'batch_size'"),
        ("lvs", ["batch_size"], "write key=value"),
        ("lvs", ["batch_size=many"], "a value like 256 is expected"),
        ("lvs", ["batch_size=0"], "batch_size must be at least 1"),
        ("lvs", ["learning_rate=nan"], "learning_rate must be above 0"),
        ("lvs", ["method=sspl"], "no such setting"),
        ("lvs", ["precision=64"], "precision '64' is unknown"),
        ("lvs", ["init=magic"], "init must be"),
        ("lvs", ["epsilon_n=0.9"], "epsilon_n"),
        ("lvs", ["accumulate=0"], "accumulate must be at least 1"),
        ("lvs", ["validation=1"], "validation must be from 0 to below 1"),
        ("lvs", ["mixing=loud"], "mixing 'loud' is unknown; there are: none, released, paper"),
        ("lvs", ["negatives=none"], "negatives 'none' is unknown"),
    ],
)
def test_wrong_names_and_values_are_sentences(name, change, sentence):
    with pytest.raises(AvpipeError, match=sentence):
        get_recipe(name, change)
