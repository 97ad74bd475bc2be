"""A checkpoint is used only where every file is as it was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobs.checkpoints import find_fault, write_digests

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "global_step3").mkdir()
    (tmp_path / "global_step3" / "shard_0.pt").write_bytes(b"weights")
    (tmp_path / "trainer_state.json").write_text("{}")
    write_digests(tmp_path, rank=0)
    return tmp_path


def test_files_as_they_were_written_have_no_fault(checkpoint: Path) -> None:
    assert find_fault(checkpoint, rank=0) is None


def test_what_another_worker_adds_is_its_own_affair(checkpoint: Path) -> None:
    (checkpoint / "global_step3" / "shard_1.pt").write_bytes(b"more")
    assert find_fault(checkpoint, rank=0) is None
    assert find_fault(checkpoint, rank=1) == f"{checkpoint / 'digests-1.json'} is missing"


@pytest.mark.parametrize("damage", ["cut", "changed", "deleted", "digests"])
def test_a_damaged_file_is_named(checkpoint: Path, damage: str) -> None:
    path = checkpoint / ("digests-0.json" if damage == "digests" else "global_step3/shard_0.pt")
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes({"cut": b"wei", "changed": b"Weights", "digests": b"{"}[damage])
    fault = find_fault(checkpoint, rank=0)
    assert fault is not None
    assert str(path) in fault
