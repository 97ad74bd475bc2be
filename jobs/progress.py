"""What a person sees while a job works: a bar with its rate, on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.shards import ActorPool, Shard, run_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a progress display while the context lasts; add tasks to it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress


def shard_progress(  # noqa: PLR0913 - a line of progress, and nothing else
    pending: Sequence[Shard],
    pool: ActorPool,
    *,
    label: str,
    unit: str,
    num_done: int,
    note: Callable[[int], str] = lambda shard: "",
) -> int:
    """Compute the pending shards under a bar of shards with the rate of rows; return the number of rows.

    `num_done` shards were committed by an earlier execution. `note` is told the index of each shard that has
    been committed, and returns what the bar then says behind the rate.
    """
    num_rows = 0
    with progress_bar() as progress:
        task = progress.add_task(
            f"{label}: starting workers", total=num_done + len(pending), completed=num_done
        )
        for shard, rows in run_shards(pending, pool):
            num_rows += rows
            elapsed_s = progress.tasks[task].elapsed or 1.0
            text = f"{label}: {num_rows} {unit}, {num_rows / max(elapsed_s, 1e-9):.2g}/s{note(shard)}"
            progress.update(task, advance=1, description=text)
    return num_rows
