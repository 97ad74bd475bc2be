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

NICENESS = 10
"""A tenth of the share of a processor that others have who want it, and all of it where nobody does.

Beside two busy threads on two processors, four seconds of work may so take forty.
"""


def unhurried(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises, run in a thread of low priority.

    A thread that it starts keeps that priority, which takes a privilege to raise: let `work` start none that
    matters afterwards (scipy's linear algebra keeps one, which serving does not use; the pool of the
    tokenizers would matter). Only Linux has priorities of threads; elsewhere nothing gives way.
    """

    def run() -> Result:
        if sys.platform == "linux":
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICENESS)
        return work()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="unhurried") as thread:
        return thread.submit(run).result()
