"""Named runs are complete configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.recipes import RECIPES, comparison_of, paper_llama, small_cpu
from jobs.train import stage_names, stages

HERE = (Path("a"), Path("b"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_its_steps_divide_among_its_workers(name: str) -> None:
    config = RECIPES[name](*HERE)
    assert (config.prepared, config.output) == HERE
    assert all(settings.queries_per_step % config.num_workers == 0 for _, settings in stages(config))


@pytest.mark.parametrize(
    ("name", "names"),
    [("sft", ("sft",)), ("rm", ("rm",)), ("dpo", ("sft", "dpo")), ("ppo", ("sft", "rm", "ppo"))],
)
def test_a_method_brings_the_stages_it_builds_on(name: str, names: tuple[str, ...]) -> None:
    assert stage_names(RECIPES[name](*HERE)) == names


def test_the_small_recipe_trains_minilm_on_two_workers() -> None:
    config = small_cpu(*HERE)
    assert (config.model, config.num_workers, config.zero_stage) == ("minilm", 2, 2)


def test_the_papers_recipe_has_the_papers_settings() -> None:
    config = paper_llama(*HERE)
    assert config.max_length == 2048
    assert {(s.num_epochs, s.learning_rate, s.queries_per_step) for _, s in stages(config)} == {(8, 2e-5, 4)}


def test_a_comparison_trains_its_cells_as_the_recipe_says_and_chooses_epochs_on_dev_queries() -> None:
    recipe = RECIPES["paper_llama"](Path("in"), Path("out"))
    config = comparison_of(recipe)
    assert config.models == (recipe.model,)
    for name in ("prepared", "output", "sft", "rm", "dpo", "ppo", "max_length", "precision", "zero_stage"):
        assert getattr(config, name) == getattr(recipe, name)
    assert (recipe.patience, config.patience) == (0, 2)
