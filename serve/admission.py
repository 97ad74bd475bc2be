"""Who may ask for how much: rates per key, and work in tokens before it is queued."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve.errors import TooManyRequestsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(slots=True)
class _Caller:
    allowance: float  # requests that it may send at once
    seen: float
    num_running: int = 0


class CallerLimits:
    """A rate of requests (a token bucket of one minute's worth) and a number at the same time, per caller."""

    def __init__(
        self, *, requests_per_minute: int, max_concurrent: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = requests_per_minute / 60
        self._burst = float(requests_per_minute)
        self._max_concurrent = max_concurrent
        self._clock = clock
        self._callers: dict[str, _Caller] = {}

    @contextmanager
    def request_of(self, name: str) -> Iterator[None]:
        """Count one request of a caller for as long as the context lasts.

        Raises:
            TooManyRequestsError: the caller has used up its rate, or too many requests are under way.
        """
        now = self._clock()
        caller = self._callers.setdefault(name, _Caller(self._burst, now))
        caller.allowance = min(self._burst, caller.allowance + (now - caller.seen) * self._rate)
        caller.seen = now
        if caller.num_running >= self._max_concurrent:
            raise TooManyRequestsError(
                f"{caller.num_running} requests of this key are under way",
                code="too_many_concurrent_requests",
                remedy=f"keep at most {self._max_concurrent} requests open at a time",
                retry_after_s=1,
            )
        if caller.allowance < 1:
            raise TooManyRequestsError(
                f"this key has sent more than {self._burst:.0f} requests within a minute",
                code="rate_limited",
                remedy="wait for the time in Retry-After",
                retry_after_s=math.ceil((1 - caller.allowance) / self._rate),
            )
        caller.allowance -= 1
        caller.num_running += 1
        try:
            yield
        finally:
            caller.num_running -= 1


class TokenAdmission:
    """A bound on the tokens that are being worked on or wait for it: more is refused at once, not queued."""

    def __init__(self, max_pending_tokens: int) -> None:
        self._max_pending_tokens = max_pending_tokens
        self._pending = 0

    @property
    def num_pending(self) -> int:
        """Tokens that are admitted and not done."""
        return self._pending

    @contextmanager
    def work_of(self, num_tokens: int) -> Iterator[None]:
        """Count work for as long as the context lasts; where nothing else is under way, any work is admitted.

        Raises:
            TooManyRequestsError: with this work it would be more than the bound.
        """
        if self._pending and self._pending + num_tokens > self._max_pending_tokens:
            raise TooManyRequestsError(
                f"{self._pending} tokens of work are under way, and with the {num_tokens} of this request it"
                f" would be more than {self._max_pending_tokens}",
                code="overloaded",
                remedy="send the request again after the time in Retry-After, or a smaller one",
                retry_after_s=1,
            )
        self._pending += num_tokens
        try:
            yield
        finally:
            self._pending -= num_tokens
