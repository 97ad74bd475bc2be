"""One request, sent again and again while something happens to a server."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable


class Watcher:
    """Sends one request again and again, and keeps every answer with the time when it came.

    Where one was not answered, `error` says why; it is raised at the end.
    """

    def __init__(self, client: httpx.Client, path: str, body: dict[str, Any]) -> None:
        self.answers: list[tuple[float, httpx.Response]] = []
        self.error: httpx.HTTPError | None = None
        self._ask: Callable[[], httpx.Response] = lambda: client.post(path, json=body)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self.answers.append((time.monotonic(), self._ask()))
        except httpx.HTTPError as error:
            self.error = error

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.error is not None:
            raise self.error
