"""Exactly-once output: a fixed plan of shards, each committed by one rename.

A job plans its shards before any work, so that their composition never depends on timing. A shard is computed anywhere,
written under a temporary name, synced, checked against the plan, and renamed. What has its final name is done: nothing
is lost by a kill but the shards in flight, and a late second attempt replaces a file by an equal one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.manifest import write_json
from rerank_core.errors import DataError, JobError
from rerank_core.formats import write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

QUARANTINE_SCHEMA = pa.schema([("key", pa.list_(pa.string())), ("reason", pa.string())])
NO_PROGRESS_TIMEOUT_S = 600.0

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the work: the keys (query_id, or query_id and doc_id, …) that one commit covers."""

    index: int
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be computed, with the reason."""

    key: Key
    reason: str


def plan_shards(output: Path, keys: Sequence[Key], *, size: int) -> list[Shard]:
    """Cut keys into shards of `size`, and fix that plan in `plan.json`.

    Raises:
        DataError: a key occurs twice, or the folder holds another plan.
    """
    if len(set(keys)) != len(keys):
        twice = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise DataError(f"{twice} occurs twice in the work to plan; prepare the inputs again")
    shards = [
        Shard(n, tuple(keys[start : start + size])) for n, start in enumerate(range(0, len(keys), size))
    ]
    plan = {"shards": [[list(key) for key in shard.keys] for shard in shards]}
    path = output / "plan.json"
    if not path.exists():
        write_json(path, plan)
    elif json.loads(path.read_text(encoding="utf-8")) != plan:
        raise DataError(f"{path} differs from the plan of these inputs; choose another --output")
    return shards


def shard_path(output: Path, index: int) -> Path:
    """Return where a committed shard lies."""
    return output / "data" / f"shard-{index:05d}.parquet"


def _quarantine_path(output: Path, index: int) -> Path:
    return output / "quarantine" / f"shard-{index:05d}.parquet"


def pending_shards(output: Path, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards that are not committed yet."""
    return [shard for shard in shards if not shard_path(output, shard.index).exists()]


def commit_shard(
    output: Path,
    shard: Shard,
    table: pa.Table,
    *,
    key_columns: Sequence[str],
    quarantined: Sequence[Quarantined],
) -> None:
    """Publish a shard's rows and its quarantined keys; the rename of the data file is the commit.

    Raises:
        JobError: the rows and the quarantine together are not exactly the planned keys. `table` may hold several rows
            per planned key where the key is a prefix of the row's identity, as candidates of a query are.
    """
    found = set(zip(*(table.column(name).to_pylist() for name in key_columns), strict=True))
    failed = {row.key for row in quarantined}
    if (found | failed) != set(shard.keys):
        odd = sorted((found | failed) ^ set(shard.keys))[:3]
        raise JobError(f"shard {shard.index} of {output} does not match its plan, for example {odd}")
    for path in (_quarantine_path(output, shard.index), shard_path(output, shard.index)):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"key": list(row.key), "reason": row.reason} for row in quarantined]
    write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), _quarantine_path(output, shard.index))
    write_table(table, shard_path(output, shard.index))


def read_shards(output: Path) -> pa.Table:
    """Return all committed rows of an output folder, in the order of the plan.

    Raises:
        DataError: no shard is there, or one cannot be read.
    """
    paths = sorted((output / "data").glob("shard-*.parquet"))
    if not paths:
        raise DataError(f"{output} holds no committed shard; run the job that writes it")
    try:
        return pa.concat_tables([pq.read_table(path) for path in paths])
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{output}: a shard cannot be read ({error}); delete it and run the job again"
        ) from error


def read_quarantine(output: Path) -> list[Quarantined]:
    """Return all quarantined keys of an output folder, in the order of the plan."""
    paths = sorted((output / "quarantine").glob("shard-*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [Quarantined(tuple(row["key"]), row["reason"]) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPool:
    """The actors that compute shards: `worker(**arguments)` is built once in each, then called with shards."""

    worker: Callable[
        ..., Callable[[Shard], int]
    ]  # a class; its instances commit a shard and return its row count
    arguments: Mapping[str, Any]
    num_workers: int
    num_cpus: float
    num_gpus: float


def run_shards(shards: Sequence[Shard], pool: ActorPool) -> Iterator[tuple[int, int]]:
    """Compute shards on a pool of Ray Data actors; yield (shard index, rows) as each is committed.

    Raises:
        JobError: a worker failed for good, or nothing progressed for ten minutes.
    """
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    items = [{"index": shard.index, "keys": json.dumps(shard.keys)} for shard in shards]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _ShardActor,
        fn_constructor_args=(pool.worker, dict(pool.arguments)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=min(pool.num_workers, len(items)), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        max_restarts=3,
        max_task_retries=3,
    )
    try:
        for row in done.iter_rows():
            yield int(row["index"]), int(row["rows"])
    except RayError as error:
        raise JobError(
            f"a worker failed for good: {root_cause(error)}; run the same command again to resume"
        ) from error


def root_cause(error: BaseException) -> str:
    """Return type and first line of the exception that started a chain of causes."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first_line}"


class _ShardActor:
    """Adapts a shard worker to Ray Data's batches of one row."""

    def __init__(self, worker: Callable[..., Callable[[Shard], int]], arguments: Mapping[str, Any]) -> None:
        self._worker = worker(**arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        (index,), (keys,) = batch["index"], batch["keys"]
        shard = Shard(int(index), tuple(tuple(key) for key in json.loads(keys)))
        return {"index": [shard.index], "rows": [self._worker(shard)]}
