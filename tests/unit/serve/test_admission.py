"""Rates and work are bounded, and what is refused costs nothing."""

from __future__ import annotations

import pytest

from serve.admission import CallerLimits, TokenAdmission
from serve.errors import TooManyRequestsError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_caller_may_send_its_rate_and_then_waits_as_long_as_it_is_told() -> None:
    clock = Clock()
    callers = CallerLimits(requests_per_minute=6, max_concurrent=9, clock=clock)
    for _ in range(6):
        with callers.request_of("a"):
            pass
    with pytest.raises(TooManyRequestsError) as refused, callers.request_of("a"):
        pass
    assert refused.value.code == "rate_limited"
    assert refused.value.retry_after_s == 10  # six a minute
    with callers.request_of("b"):  # another key has its own rate
        pass
    clock.now += refused.value.retry_after_s
    with callers.request_of("a"):
        pass
    with pytest.raises(TooManyRequestsError), callers.request_of("a"):
        pass


def test_a_caller_may_have_so_many_requests_under_way() -> None:
    callers = CallerLimits(requests_per_minute=1000, max_concurrent=1)
    with callers.request_of("a"):
        with pytest.raises(TooManyRequestsError) as refused, callers.request_of("a"):
            pass
        assert refused.value.code == "too_many_concurrent_requests"
    with callers.request_of("a"):
        pass


def test_a_request_that_fails_is_no_longer_under_way() -> None:
    callers = CallerLimits(requests_per_minute=1000, max_concurrent=1)
    with pytest.raises(ZeroDivisionError), callers.request_of("a"):
        raise ZeroDivisionError
    with callers.request_of("a"):
        pass


def test_work_beyond_the_bound_is_refused_and_leaves_no_trace() -> None:
    admission = TokenAdmission(100)
    with admission.work_of(60):
        with pytest.raises(TooManyRequestsError) as refused, admission.work_of(41):
            pass
        assert (refused.value.code, refused.value.retry_after_s) == ("overloaded", 1)
        with admission.work_of(40):
            assert admission.num_pending == 100
    assert admission.num_pending == 0


def test_work_larger_than_the_bound_is_done_when_nothing_else_is() -> None:
    admission = TokenAdmission(100)
    with admission.work_of(500):
        pass
    assert admission.num_pending == 0
