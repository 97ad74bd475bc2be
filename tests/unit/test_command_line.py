"""What a person types, and what the command line answers."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import whyrank
from jobs.recipes import RECIPES, comparison_of
from jobs.training_config import CompareJob, TrainJob

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a run changes in its process: variables and the level of the log."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    logger = logging.getLogger("whyrank")
    level = logger.level
    yield
    logger.setLevel(level)


def examples(text: str) -> list[str]:
    """Return the commands below "Examples:", each on one line."""
    joined = text.partition("Examples:\n")[2].replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip().startswith("whyrank ")]


ALL_EXAMPLES = [
    (name, example) for name, kind in whyrank.JOBS.items() for example in examples(inspect.getdoc(kind) or "")
]
OVERVIEW = [(shlex.split(example)[1], example) for example in examples(whyrank.DESCRIPTION)]


# --- help


@pytest.mark.parametrize("name", whyrank.JOBS)
def test_the_help_of_every_job_shows_its_examples_and_settings(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        whyrank.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert examples(text) == examples(inspect.getdoc(whyrank.JOBS[name]) or "")
    assert examples(text)
    assert all(f"--{field.name.replace('_', '-')}" in text for field in fields(whyrank.JOBS[name]))


def test_the_help_of_all_names_every_job_and_keeps_their_examples_to_themselves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        whyrank.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert examples(text) == examples(whyrank.DESCRIPTION)
    assert all(f"• {name}" in text for name in whyrank.JOBS)


@pytest.mark.parametrize(("name", "example"), [*ALL_EXAMPLES, *OVERVIEW], ids=lambda value: value)
def test_every_example_is_a_command_that_is_understood(name: str, example: str) -> None:
    program, *arguments = shlex.split(example)
    assert (program, arguments[0]) == ("whyrank", name)
    assert type(whyrank.parse(arguments)) is whyrank.JOBS[name]


# --- settings


def test_a_recipe_is_where_single_settings_start_from() -> None:
    given = ["train", "--recipe", "ppo", "--prepared", "in", "--output", "out", "--ppo.clip", "0.1"]
    config = whyrank.parse(given)
    expected = RECIPES["ppo"](Path("in"), Path("out"))
    assert config == dataclasses.replace(expected, ppo=dataclasses.replace(expected.ppo, clip=0.1))


@pytest.mark.parametrize(
    ("recipe", "objectives"),
    [("sft", ("sft",)), ("rm", ("rm",)), ("dpo", ("sft", "dpo")), ("ppo", ("sft", "rm", "ppo"))],
)
def test_every_method_is_a_recipe_with_the_stages_it_needs(recipe: str, objectives: tuple[str, ...]) -> None:
    config = whyrank.parse(["train", "--recipe", recipe, "--prepared", "in", "--output", "out"])
    assert isinstance(config, TrainJob)
    assert config.objectives == objectives
    assert (config.model, config.zero_stage, config.num_workers) == ("minilm", 2, 2)


def test_a_comparison_starts_from_a_recipe_and_takes_models_and_seeds() -> None:
    given = "compare --recipe small_cpu --models minilm smollm2:4 --seeds 0 1 --prepared in --output out"
    config = whyrank.parse(shlex.split(given))
    expected = comparison_of(RECIPES["small_cpu"](Path("in"), Path("out")))
    assert isinstance(config, CompareJob)
    assert config == dataclasses.replace(expected, models=("minilm", "smollm2:4"), seeds=(0, 1))
    assert config.dpo.learning_rate == 1e-5


def test_a_recipe_can_be_estimated_before_it_is_run() -> None:
    config = whyrank.parse(["memory", "--recipe", "paper_llama", "--model", "elsewhere"])
    assert (config.model, config.num_gpus, config.precision, config.max_length) == (
        "elsewhere",
        4,
        "bf16",
        2048,
    )


def test_an_unknown_recipe_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        whyrank.main(["train", "--recipe", "magic", "--prepared", "in", "--output", "out"])
    assert ended.value.code == 2
    assert "invalid choice: 'magic' (choose from" in capsys.readouterr().err


def test_nested_settings_and_lists_reach_the_job() -> None:
    command = "train --prepared a --output b --objectives sft dpo --dpo.beta 0.5 --sft.num-epochs 3"
    config = whyrank.parse(shlex.split(command))
    assert isinstance(config, TrainJob)
    assert config.objectives == ("sft", "dpo")
    assert (config.dpo.beta, config.sft.num_epochs) == (0.5, 3)


# --- what the user can mend


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("rerank", "rerank"),
        ("", "prepare"),
        ("demo --colour red", "--colour"),
        ("train --prepared a", "--output"),
        ("prepare --output a --num-folds many", "many"),
        ("score --prepared a --artefact b --output c --split validation", "validation"),
    ],
    ids=["unknown job", "no job", "unknown flag", "missing flag", "no number", "unknown choice"],
)
def test_what_is_not_understood_is_named_and_exits_with_2(
    command: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        whyrank.main(shlex.split(command))
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_a_setting_out_of_range_is_named_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        whyrank.main(["demo", "--max-documents", "99"])
    assert ended.value.code == 2
    assert "max_documents must lie between 1 and 12, got 99" in capsys.readouterr().err


def test_a_table_that_was_deleted_is_named_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = tmp_path / "prepared"
    assert whyrank.main(["prepare", "--output", str(prepared)]) == 0
    (prepared / "queries.parquet").unlink()
    line = ["train", "--prepared", str(prepared), "--output", str(tmp_path / "out"), "--objectives"]
    assert whyrank.main(line) == 2
    assert "queries.parquet" in capsys.readouterr().err


@pytest.mark.parametrize("job", ["train", "score --artefact nothing", "evaluate --runs a=b"])
def test_a_missing_prepared_folder_is_named_and_returns_2(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, output = tmp_path / "missing", tmp_path / "out"
    arguments = [*shlex.split(job), "--prepared", str(missing), "--output", str(output)]
    assert whyrank.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("whyrank: ")
    assert str(missing) in error
    assert not output.exists()


def test_a_users_mistake_ends_the_process_with_2_and_without_a_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    command = [sys.executable, "whyrank.py", "prepare", "--collection", missing, "--output", f"{missing}-out"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert f"whyrank: {missing} is no folder" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
