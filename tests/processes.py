"""Programs that a test starts: waited for, and ended with all that they have started themselves."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import signal
    import subprocess
    from collections.abc import Callable

READY_S = 120.0
END_S = 60.0


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    own = psutil.Process(pid)
    return [own, *own.children(recursive=True)]


def wait_until(is_so: Callable[[], bool], *, told: Callable[[], object]) -> None:
    """Wait until something is so; where it never is, the test fails with what is `told`."""
    deadline = time.monotonic() + READY_S
    while not is_so():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Send a signal, and return the exit code once the process and all that it has started are gone.

    What does not go by itself is killed, and the test fails.
    """
    tree = process_tree(process.pid)
    process.send_signal(number)
    try:
        process.communicate(timeout=END_S)
        _, left = psutil.wait_procs(tree[1:], timeout=END_S)
    finally:
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    assert left == []
    return process.returncode
