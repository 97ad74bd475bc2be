"""What every request passes before the API sees it: its key, its limits, its size."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.errors import ConfigError
from serve.admission import CallerLimits
from serve.errors import ApiError, RequestTimeoutError, TooLargeError, UnauthorisedError, internal_fault
from serve.haproxy import SWITCH, hides_callers

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serve.auth import KeyRing
    from serve.metrics import RequestMetrics

logger = logging.getLogger("whyrank.serve")

OPEN_PATHS = frozenset(["/", "/health", "/favicon.ico"])
"""What is answered without a key: they hold no data."""

OPEN_FOLDER = "/page/"
"""The page's static files."""

ANYBODY = "anybody"
"""The caller's name where no keys are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What one request may bring, and how long it may take."""

    max_bytes: int
    receive_timeout_s: float
    answer_timeout_s: float


class Guard:
    """An ASGI application around another: refuses what may not pass, and counts all."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing | None,
        callers: CallerLimits,
        limits: BodyLimits,
        metrics: RequestMetrics,
    ) -> None:
        """Take the limits of one gateway, and its keys, or None where its own machine alone may ask.

        Raises:
            ConfigError: there are no keys, and nobody could tell who asks.
        """
        if keys is None and hides_callers():
            raise ConfigError(
                f"behind HAProxy ({SWITCH}) every caller seems to be this machine; give keys, or unset it"
            )
        self._app = app
        self._keys = keys
        self._callers = callers
        self._strangers = CallerLimits(requests_per_minute=6000, max_concurrent=64)  # who brings no key
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        started = time.perf_counter()
        try:
            await self._guarded(scope, receive, answer)
        except ApiError as error:
            await answer.refuse(error)
        except Exception:
            logger.exception("%s %s failed", scope["method"], self._metrics.route_of(scope["path"]))
            await answer.refuse(internal_fault())  # where the API has not answered already
        finally:
            self._metrics.observe(scope["path"], answer.status, seconds=time.perf_counter() - started)

    async def _guarded(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            with self._strangers.request_of(ANYBODY):
                await self._answered(scope, _Replay(b"", receive), answer)  # whatever body comes is not read
            return
        with self._callers.request_of(self._caller(scope)):
            body = await _whole_body(scope, receive, self._limits)
            await self._answered(scope, _Replay(body, receive), answer)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            async with asyncio.timeout(self._limits.answer_timeout_s):
                await self._app(scope, receive, answer)
        except TimeoutError as error:
            raise RequestTimeoutError(
                f"there was no answer within {self._limits.answer_timeout_s:g} s",
                code="timeout",
                remedy="send the request again, or one with fewer documents",
            ) from error

    def _caller(self, scope: Scope) -> str:
        if self._keys is None:
            _require_loopback(scope)
            return ANYBODY
        name = self._keys.name_of(_bearer(scope))
        if name is None:
            raise UnauthorisedError(
                "the request brings no key that is known here",
                code="invalid_api_key",
                remedy="send the header `Authorization: Bearer <key>`",
            )
        return name


def _require_loopback(scope: Scope) -> None:
    """Refuse callers from other machines where no key is asked for, however the server was started."""
    host = (scope.get("client") or ("127.0.0.1", 0))[0]
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:  # whatever it is, it is no address of this machine
        is_here = False
    if not is_here:
        raise UnauthorisedError(
            "this server asks for no keys, and so answers its own machine alone",
            code="not_from_here",
            remedy="start it with keys",
        )


class _Answer:
    """Sends an answer, and knows whether one was begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, unless an answer was begun: that one just ends."""
        if self.status:
            return
        body = json.dumps(error.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
        await self(
            {
                "type": "http.response.start",
                "status": error.status,
                "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await self._send({"type": "http.response.body", "body": body})


class _Replay:
    """Gives a body that was read already, and then whatever else is received: that the client has gone."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _whole_body(scope: Scope, receive: Receive, limits: BodyLimits) -> bytes:
    """Return a request's body.

    Raises:
        TooLargeError: it has, or says it has, more bytes than allowed; nothing more of it is read.
        RequestTimeoutError: it did not arrive in time.
    """
    stated = _header(scope, b"content-length")
    if stated.isdigit() and int(stated) > limits.max_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(limits.receive_timeout_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestTimeoutError(
                        "the client left before its body was complete",
                        code="client_closed_request",
                        remedy="send the request again",
                    )
                chunks.append(message.get("body", b""))
                if sum(map(len, chunks)) > limits.max_bytes:
                    raise _too_large(limits)
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise RequestTimeoutError(
            f"the body did not arrive within {limits.receive_timeout_s:g} s",
            code="slow_body",
            remedy="send the request again in one go",
        ) from error
    return b"".join(chunks)


def _too_large(limits: BodyLimits) -> TooLargeError:
    return TooLargeError(
        f"the body has more than {limits.max_bytes} bytes",
        code="body_too_large",
        remedy="send fewer or shorter documents in a request",
    )


def _bearer(scope: Scope) -> str:
    scheme, _, key = _header(scope, b"authorization").decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key.lower() == name), b"")
