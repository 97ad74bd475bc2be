"""A circuit breaker: who fails again and again is left alone for a while, and then tried once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class CircuitBreaker:
    """Closed until `max_failures` in a row; then open for `pause_s`; then one call decides."""

    def __init__(
        self, *, max_failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._clock = clock
        self._num_failures = 0
        self._opened = 0.0

    def may_call(self) -> bool:
        """Return whether to call; after a pause one may, and another one a pause later."""
        if self._num_failures < self._max_failures:
            return True
        if self._clock() - self._opened < self._pause_s:
            return False
        self._opened = self._clock()
        return True

    def succeeded(self) -> None:
        """Close it."""
        self._num_failures = 0

    def failed(self) -> None:
        """Count a failure; enough of them open it."""
        self._num_failures += 1
        self._opened = self._clock()
