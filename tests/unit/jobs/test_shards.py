"""Every planned key is computed exactly once, whatever is killed on the way."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from jobs.shards import (
    Quarantined,
    Shard,
    _ShardActor,
    commit_shard,
    pending_shards,
    plan_shards,
    read_quarantine,
    root_cause,
    shard_path,
)
from rerank_core.errors import DataError, JobError
from rerank_core.formats import read_shards, rows_of, table_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COLUMNS = {"query_id": pa.string(), "score": pa.float32()}
KEYS = [("q1",), ("q2",), ("q3",), ("q4",), ("q5",)]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def commit(output: Path, shard: Shard, rows: list[tuple[str, float]], *failed: str) -> None:
    quarantined = [Quarantined((query_id,), f"{query_id} failed") for query_id in failed]
    table = table_of(rows, COLUMNS)
    commit_shard(output, shard, table, key_columns=("query_id",), quarantined=quarantined)


def committed(output: Path) -> list[tuple[Any, ...]]:
    return list(rows_of(read_shards(output / "data", COLUMNS)))


# --- the plan


def test_keys_are_cut_into_shards_in_their_order(tmp_path: Path) -> None:
    shards = plan_shards(tmp_path, KEYS, size=2)
    assert [shard.index for shard in shards] == [0, 1, 2]
    assert [key for shard in shards for key in shard.keys] == KEYS
    assert [len(shard.keys) for shard in shards] == [2, 2, 1]


def test_the_same_plan_is_accepted_again_and_another_is_refused(tmp_path: Path) -> None:
    first = plan_shards(tmp_path, KEYS, size=2)
    assert plan_shards(tmp_path, KEYS, size=2) == first
    for keys, size in ((KEYS, 3), (KEYS[::-1], 2), (KEYS[:4], 2)):
        with pytest.raises(DataError, match=r"plan\.json differs from the plan of these inputs"):
            plan_shards(tmp_path, keys, size=size)


def test_a_key_that_occurs_twice_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\('q1',\) occurs twice"):
        plan_shards(tmp_path, [*KEYS, ("q1",)], size=2)
    assert list(tmp_path.iterdir()) == []


# --- the commit


def test_a_committed_shard_is_no_longer_pending(tmp_path: Path) -> None:
    shards = plan_shards(tmp_path, KEYS, size=2)
    assert pending_shards(tmp_path, shards) == shards
    commit(tmp_path, shards[1], [("q3", 0.5), ("q3", 0.25), ("q4", 1.0)])
    assert pending_shards(tmp_path, shards) == [shards[0], shards[2]]
    commit(tmp_path, shards[0], [("q1", 2.0), ("q2", 3.0)])
    assert committed(tmp_path) == [("q1", 2.0), ("q2", 3.0), ("q3", 0.5), ("q3", 0.25), ("q4", 1.0)]


@pytest.mark.parametrize(
    ("rows", "failed", "odd"),
    [
        ([("q1", 1.0)], (), "q2"),
        ([("q1", 1.0), ("q2", 1.0), ("q9", 1.0)], (), "q9"),
        ([("q1", 1.0)], ("q9",), "q2"),
        ([], (), "q1"),
    ],
    ids=["missing", "foreign", "foreign in quarantine", "empty"],
)
def test_rows_that_are_not_the_plan_are_refused_and_nothing_is_written(
    tmp_path: Path, rows: list[tuple[str, float]], failed: tuple[str, ...], odd: str
) -> None:
    (shard,) = plan_shards(tmp_path, KEYS[:2], size=2)
    with pytest.raises(JobError, match=f"shard 0 of .* does not match its plan, for example .*{odd}"):
        commit(tmp_path, shard, rows, *failed)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["plan.json"]


def test_quarantined_keys_are_read_back_with_their_reasons(tmp_path: Path) -> None:
    shards = plan_shards(tmp_path, KEYS, size=2)
    commit(tmp_path, shards[1], [], "q4", "q3")
    commit(tmp_path, shards[0], [("q2", 1.0)], "q1")
    commit(tmp_path, shards[2], [("q5", 1.0)])
    assert read_quarantine(tmp_path) == [
        Quarantined(("q1",), "q1 failed"),
        Quarantined(("q4",), "q4 failed"),
        Quarantined(("q3",), "q3 failed"),
    ]
    assert pending_shards(tmp_path, shards) == []
    assert [query_id for query_id, _ in committed(tmp_path)] == ["q2", "q5"]


def test_a_late_second_attempt_replaces_a_shard_by_an_equal_one(tmp_path: Path) -> None:
    (shard,) = plan_shards(tmp_path, KEYS[:2], size=2)
    commit(tmp_path, shard, [("q1", 1.0)], "q2")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    commit(tmp_path, shard, [("q1", 1.0)], "q2")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    assert len(before) == 2


# --- kills


def test_a_half_written_file_is_not_taken_for_a_shard(tmp_path: Path) -> None:
    shards = plan_shards(tmp_path, KEYS[:2], size=1)
    commit(tmp_path, shards[0], [("q1", 1.0)])
    whole = shard_path(tmp_path, 0).read_bytes()
    shard_path(tmp_path, 1).with_name(".shard-00001.parquet.0a1b2c3d.tmp").write_bytes(
        whole[: len(whole) // 2]
    )
    assert pending_shards(tmp_path, shards) == [shards[1]]
    assert committed(tmp_path) == [("q1", 1.0)]
    assert plan_shards(tmp_path, KEYS[:2], size=1) == shards  # the same command again
    commit(tmp_path, shards[1], [("q2", 2.0)])
    assert committed(tmp_path) == [("q1", 1.0), ("q2", 2.0)]
    assert not list(tmp_path.rglob("*.tmp"))


class Interruption:
    """Ends the process before or after the nth of the calls by which a file becomes durable and visible."""

    def __init__(self, patch: pytest.MonkeyPatch, *, at: int, after: bool) -> None:
        self.num_calls = 0
        self._at, self._after = at, after
        for name in ("fsync", "replace"):
            patch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, call: Callable[..., object]) -> Callable[..., object]:
        def interrupted(*arguments: object, **options: object) -> object:
            self.num_calls += 1
            is_last = self.num_calls - 1 == self._at
            if is_last and not self._after:
                raise Killed
            result = call(*arguments, **options)
            if is_last:
                raise Killed
            return result

        return interrupted


def num_durable_calls(output: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    output.mkdir()
    (shard,) = plan_shards(output, KEYS[:2], size=2)
    with monkeypatch.context() as patch:
        interruption = Interruption(patch, at=-1, after=False)
        commit(output, shard, [("q1", 1.0)], "q2")
    return interruption.num_calls


@pytest.mark.parametrize("is_second", [False, True], ids=["first attempt", "second attempt"])
def test_a_kill_at_any_moment_of_a_commit_leaves_all_of_a_shard_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_second: bool
) -> None:
    num_calls = num_durable_calls(tmp_path / "counted", monkeypatch)
    assert num_calls >= 4
    for moment in [(at, after) for at in range(num_calls) for after in (False, True)]:
        output = tmp_path / f"{moment[0]}-{moment[1]}"
        output.mkdir()
        (shard,) = plan_shards(output, KEYS[:2], size=2)
        if is_second:
            commit(output, shard, [("q1", 1.0)], "q2")
        with monkeypatch.context() as patch:
            Interruption(patch, at=moment[0], after=moment[1])
            with pytest.raises(Killed):
                commit(output, shard, [("q1", 1.0)], "q2")
        is_whole = is_second or moment == (num_calls - 1, True)
        assert pending_shards(output, [shard]) == ([] if is_whole else [shard]), moment
        if is_whole:
            assert committed(output) == [("q1", 1.0)], moment
            assert read_quarantine(output) == [Quarantined(("q2",), "q2 failed")], moment
        assert plan_shards(output, KEYS[:2], size=2) == [shard]  # the same command again
        commit(output, shard, [("q1", 1.0)], "q2")
        assert pending_shards(output, [shard]) == []
        assert committed(output) == [("q1", 1.0)]
        assert read_quarantine(output) == [Quarantined(("q2",), "q2 failed")]
        assert not list(output.rglob("*.tmp"))


# --- workers


def test_a_shard_reaches_its_worker_as_it_was_planned() -> None:
    seen: list[Shard] = []

    class Worker:
        def __init__(self, *, factor: int) -> None:
            self._factor = factor

        def __call__(self, shard: Shard) -> int:
            seen.append(shard)
            return self._factor * len(shard.keys)

    shard = Shard(3, (("q1", "d 1"), ("q2", "d\n2")))
    batch = {"index": [shard.index], "keys": [json.dumps(shard.keys)]}
    assert _ShardActor(Worker, {"factor": 10})(batch) == {"index": [3], "rows": [20]}
    assert seen == [shard]


def test_the_root_cause_is_the_first_exception_of_a_chain() -> None:
    def fail() -> None:
        try:
            raise DataError("corpus.parquet is gone\nsecond line")
        except DataError as error:
            raise RuntimeError("task failed") from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert root_cause(caught.value) == "DataError: corpus.parquet is gone"
    assert root_cause(ValueError()) == "ValueError: no message"


def test_a_key_cannot_be_both_computed_and_quarantined(tmp_path: Path) -> None:
    (shard,) = plan_shards(tmp_path, KEYS[:1], size=1)
    with pytest.raises(JobError, match="does not match its plan"):
        commit(tmp_path, shard, [("q1", 1.0)], "q1")
