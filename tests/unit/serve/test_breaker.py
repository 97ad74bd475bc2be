"""A circuit breaker opens after enough failures, and lets one call try after a pause."""

from __future__ import annotations

from serve.breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = CircuitBreaker(max_failures=2, pause_s=10, clock=Clock())
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.may_call()
    breaker.failed()
    assert not breaker.may_call()


def test_after_a_pause_one_call_decides() -> None:
    clock = Clock()
    breaker = CircuitBreaker(max_failures=1, pause_s=10, clock=clock)
    breaker.failed()
    clock.now = 10
    assert breaker.may_call()
    assert not breaker.may_call()  # the first one is still trying
    breaker.failed()
    clock.now = 19
    assert not breaker.may_call()
    clock.now = 20
    assert breaker.may_call()
    breaker.succeeded()
    assert all(breaker.may_call() for _ in range(3))
