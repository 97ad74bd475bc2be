"""Libraries find the variables that they read when they are first imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jobs.environment import environment, prepare_environment


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of the search path, still empty; all changed variables are restored afterwards."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def add_driver(folder: Path) -> None:
    (folder / "nvidia-smi").write_text("#!/bin/sh\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_deepspeed_is_told_of_the_cpu_only_where_there_is_no_gpu(path: Path) -> None:
    assert environment()["DS_ACCELERATOR"] == "cpu"
    add_driver(path)
    assert "DS_ACCELERATOR" not in environment()


@pytest.mark.parametrize("has_gpu", [False, True])
def test_nothing_is_reported_to_anybody_with_or_without_a_gpu(path: Path, has_gpu: bool) -> None:
    if has_gpu:
        add_driver(path)
    variables = environment()
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables["VLLM_NO_USAGE_STATS"] == variables["DO_NOT_TRACK"] == "1"


def test_the_programs_of_this_installation_come_first(path: Path) -> None:
    prepare_environment()
    assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), str(path)]


def test_what_the_user_has_set_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "elsewhere")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    prepare_environment()
    assert (os.environ["TORCH_EXTENSIONS_DIR"], os.environ["DS_ACCELERATOR"]) == ("elsewhere", "cuda")


def test_preparing_a_second_time_changes_nothing(path: Path) -> None:
    prepare_environment()
    before = dict(os.environ)
    prepare_environment()
    assert dict(os.environ) == before
