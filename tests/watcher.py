"""One request, sent again and again while something happens to a server."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx


class Watcher:
    """Sends one request again and again, and keeps every answer with the time when it came."""

    def __init__(self, client: httpx.Client, path: str, body: dict[str, Any]) -> None:
        self.answers: list[tuple[float, httpx.Response]] = []
        self._ask: Callable[[], httpx.Response] = lambda: client.post(path, json=body)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.is_set():
            self.answers.append((time.monotonic(), self._ask()))

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
