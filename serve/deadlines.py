"""Answers that come one by one, waited for until a deadline."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

Item = TypeVar("Item")


async def until(deadline: float, items: AsyncGenerator[Item, None]) -> AsyncIterator[Item]:
    """Yield items as they come; whoever makes them is told when nobody wants more.

    `deadline` is one of `time.monotonic()`.

    Raises:
        TimeoutError: the next one is not there at the deadline.
    """
    async with aclosing(items):
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    item = await anext(items)
            except StopAsyncIteration:
                return
            yield item
