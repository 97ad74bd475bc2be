"""Exactly-once output: a fixed plan of shards, each committed by one rename.

A job plans its shards before any work, so that their composition never depends on timing. A shard is
computed anywhere, checked against the plan, written under a temporary name, synced, and renamed. What has
its final name is done: nothing is lost by a kill but the shards in flight, and a late second attempt
replaces a file by an equal one.
"""

from __future__ import annotations

import json
import logging
import warnings
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
NO_PROGRESS_TIMEOUT_S = 4 * 3600.0
"""Ray Data sees progress only when a shard ends: longer than a large shard takes on a slow machine."""
MAX_RESTARTS = 3

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
    for leftover in output.rglob(".*.parquet.*.tmp"):  # of an attempt that was killed
        leftover.unlink(missing_ok=True)
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
        JobError: the rows and the quarantine together are not exactly the planned keys. `table` may hold
            several rows per planned key where the key is a prefix of the row's identity, as candidates of a
            query are.
    """
    found = set(zip(*(table.column(name).to_pylist() for name in key_columns), strict=True))
    failed = {row.key for row in quarantined}
    odd = ((found | failed) ^ set(shard.keys)) | (found & failed)
    if odd:
        raise JobError(f"shard {shard.index} of {output} does not match its plan, for example {min(odd)}")
    for path in (_quarantine_path(output, shard.index), shard_path(output, shard.index)):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"key": list(row.key), "reason": row.reason} for row in quarantined]
    write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), _quarantine_path(output, shard.index))
    write_table(table, shard_path(output, shard.index))


def read_quarantine(output: Path) -> list[Quarantined]:
    """Return all quarantined keys of an output folder, in the order of the plan."""
    paths = sorted((output / "quarantine").glob("shard-*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [Quarantined(tuple(row["key"]), row["reason"]) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPool:
    """The actors that compute shards.

    `worker` is a class: `worker(**arguments)` is built once in each actor, then called with one shard after
    the other; a call commits its shard and returns the number of its rows.
    """

    worker: Callable[..., Callable[[Shard], int]]
    arguments: Mapping[str, Any]
    num_workers: int
    num_cpus: float
    num_gpus: float


def run_shards(shards: Sequence[Shard], pool: ActorPool) -> Iterator[tuple[int, int]]:
    """Compute shards on a pool of Ray Data actors; yield (shard index, rows) as each is committed.

    Raises:
        JobError: a worker failed for good, or no shard ended for four hours.
    """
    import ray.data
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    configure_ray_data(no_progress_timeout_s=NO_PROGRESS_TIMEOUT_S)
    items = [{"index": shard.index, "keys": json.dumps(shard.keys)} for shard in shards]
    actors = ray.data.ActorPoolStrategy(
        size=min(pool.num_workers, len(items)), max_tasks_in_flight_per_actor=1
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`ray_remote_args` is deprecated"
        )  # the only way to bound restarts
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _ShardActor,
            fn_constructor_args=(pool.worker, dict(pool.arguments)),
            batch_size=1,
            compute=actors,
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )
    try:
        for row in done.iter_rows():
            yield int(row["index"]), int(row["rows"])
    except (RayError, ExecutionTimeoutError) as error:
        raise JobError(
            f"a worker failed for good: {root_cause(error)}; run the same command again to resume"
        ) from error


def configure_ray_data(*, no_progress_timeout_s: float) -> None:
    """Leave progress to our own bar, and end an execution that stands still for so long."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = no_progress_timeout_s
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def root_cause(error: BaseException) -> str:
    """Return type and first line of the earliest exception in a chain of causes that says something."""
    told = error
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
        told = error if str(error).strip() else told
    return f"{type(told).__name__}: {(str(told).strip() or 'no message').splitlines()[0]}"


class _ShardActor:
    """Adapts a shard worker to Ray Data's batches of one row."""

    def __init__(self, worker: Callable[..., Callable[[Shard], int]], arguments: Mapping[str, Any]) -> None:
        self._worker = worker(**arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        (index,), (keys,) = batch["index"], batch["keys"]
        shard = Shard(int(index), tuple(tuple(key) for key in json.loads(keys)))
        return {"index": [shard.index], "rows": [self._worker(shard)]}
