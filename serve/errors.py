"""Every error that the API answers with, in the shape that clients of OpenAI and vLLM read.

ApiError                     {"error": {"message", "type", "param", "code", "remedy"}}
├── InvalidRequestError      400: the request cannot be meant; the same request fails again
├── UnauthorisedError        401: no key, or none that is known
├── UnknownModelError        404: another model than the served one is asked for
├── RequestTimeoutError      408: the answer took longer than allowed; the same request may succeed later
├── TooLargeError            413: the request is larger than a limit
├── UnprocessableError       422: a field has another type than its schema says
├── TooManyRequestsError     429: the key, or the queue of work, is at its limit; `Retry-After` says how long
├── ServerFaultError         500: the model gave no number
└── UnavailableError         503: no replica can answer now; `Retry-After` says how long
"""

from __future__ import annotations

from typing import Any, ClassVar


class ApiError(Exception):
    """What went wrong with one request: `code` is for machines, `remedy` says what the caller can do."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        remedy: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.remedy = remedy
        self.param = param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        """Raised in one process, it arrives in another as it was."""
        return _rebuilt, (type(self), self.message, self.code, self.remedy, self.param, self.retry_after_s)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that answers the request."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                "remedy": self.remedy,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the answer."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class InvalidRequestError(ApiError):
    """The request cannot be meant."""

    status, kind = 400, "invalid_request_error"


class UnauthorisedError(ApiError):
    """No key, or none that is known."""

    status, kind = 401, "authentication_error"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the answer."""
        return {"WWW-Authenticate": "Bearer"}


class UnknownModelError(ApiError):
    """Another model than the served one is asked for."""

    status, kind = 404, "not_found_error"


class RequestTimeoutError(ApiError):
    """The answer took longer than allowed."""

    status, kind = 408, "timeout_error"


class TooLargeError(ApiError):
    """The request is larger than a limit."""

    status, kind = 413, "request_too_large_error"


class UnprocessableError(ApiError):
    """A field has another type than its schema says."""

    status, kind = 422, "invalid_request_error"


class TooManyRequestsError(ApiError):
    """The key, or the queue of work, is at its limit."""

    status, kind = 429, "rate_limit_error"


class ServerFaultError(ApiError):
    """The model gave no number."""

    status, kind = 500, "server_error"


class UnavailableError(ApiError):
    """No replica can answer now."""

    status, kind = 503, "overloaded_error"


def internal_fault() -> ServerFaultError:
    """Return what a request is told of a fault of ours, whose cause is for the log alone."""
    return ServerFaultError(
        "the server failed on this request",
        code="internal_error",
        remedy="tell the operator; the server's log has the cause",
    )


def _rebuilt(kind: type[ApiError], *of_error: Any) -> ApiError:
    message, code, remedy, param, retry_after_s = of_error
    return kind(message, code=code, remedy=remedy, param=param, retry_after_s=retry_after_s)
