"""What gives way to others, and what does not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serve.priority import NICENESS, unhurried


def niceness() -> int:
    """Return how much the calling thread gives way."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_work_gives_way_and_nothing_after_it_does() -> None:
    before = niceness()
    assert unhurried(niceness) == NICENESS
    assert niceness() == before


LOADING = """
import os, sys, threading, time
from pathlib import Path
from rerank_core.records import Document, Query
from serve.reranker import load_served

def niceness(thread):
    return os.getpriority(os.PRIO_PROCESS, thread)

def ticks():  # of processor time, of each thread
    tasks = {int(task.name): (task / "stat").read_text() for task in Path("/proc/self/task").iterdir()}
    return {thread: int(stat.rpartition(")")[2].split()[11]) for thread, stat in tasks.items()}

def note(event, arguments):
    if event == "import" and arguments[0] == "transformers.modeling_utils":
        print("imported", niceness(threading.get_native_id()))

sys.addaudithook(note)
scorer, _ = load_served(Path(sys.argv[1]), long_documents="truncate", max_tokens_per_batch=512)
before, ends = ticks(), time.monotonic() + 1
while time.monotonic() < ends:
    scorer.score(Query("", "sea ice"), [Document("", "river ice dates " * 9)] * 64)
worked = [thread for thread, spent in ticks().items() if spent > before.get(thread, 0)]
print("scored", *{niceness(thread) - niceness(os.getpid()) for thread in worked})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_a_replica_imports_unhurried_and_scores_with_no_thread_that_gives_way(artefact: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOADING, str(artefact)],
        cwd=Path(__file__).resolve().parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert told.splitlines() == [f"imported {NICENESS}", "scored 0"]


def test_what_work_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="no number"):
        unhurried(lambda: int("no number"))
