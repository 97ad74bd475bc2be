"""Work that gives way to whoever answers requests on the same machine."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

NICENESS = 19
"""The lowest priority. Ray's own workers have 15, beside which it gets four tenths of their share of a busy
processor, and all of an idle one."""


def unhurried(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises, run in a thread of the lowest priority.

    A thread that it starts keeps that priority, which takes a privilege to raise: let `work` start none that
    matters afterwards (scipy's linear algebra keeps one, which serving does not use; the pool of the
    tokenizers would matter). Only Linux has priorities of threads; elsewhere nothing gives way.
    """

    def run() -> Result:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        return work()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="unhurried") as thread:
        return thread.submit(run).result()
