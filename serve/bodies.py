"""A request's body as JSON, read strictly: what is ambiguous or not JSON is refused."""

from __future__ import annotations

import json
import math
from typing import Any

from serve.errors import InvalidRequestError, TooLargeError

MAX_DEPTH = 32
MAX_VALUES = 20_000
"""Values of one body: a wrong one costs a thousand times its bytes to describe."""


def parse_body(raw: bytes) -> Any:
    """Return the value that a body spells.

    Raises:
        InvalidRequestError: it is no UTF-8 or no JSON (NaN and Infinity are none), an object has a key twice,
            a number is beyond float64, a text holds half of a surrogate pair, or it is nested deeper than
            `MAX_DEPTH`.
        TooLargeError: it consists of more than `MAX_VALUES` values.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(f"byte {error.start} is not UTF-8", code="not_utf8") from error
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise _refused(
            f"{error.msg} at line {error.lineno}, column {error.colno}", code="not_json"
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # an integer of thousands of digits
        raise _refused("a number has too many digits", code="number_out_of_range") from error
    if _num_values(value, depth=1) > MAX_VALUES:
        raise TooLargeError(
            f"the body holds more than {MAX_VALUES} values",
            code="too_many_values",
            remedy="send fewer documents in a request",
            param="body",
        )
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _refused(f"an object has the key {name[:80]!r} twice", code="duplicate_key")
        found[name] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise _refused(f"{name} is not JSON", code="not_json")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _refused(f"the number {digits[:40]} is beyond float64", code="number_out_of_range")
    return number


def _num_values(value: Any, *, depth: int) -> int:
    """Return how many values a value consists of, itself included; every text in it is checked."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, dict):
        for name in value:
            _check_text(name)
        return 1 + sum(_num_values(item, depth=depth + 1) for item in value.values())
    elif isinstance(value, list):
        return 1 + sum(_num_values(item, depth=depth + 1) for item in value)
    return 1


def _check_text(text: str) -> None:
    """JSON can spell half of a surrogate pair, which is no character: no tokenizer can read it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _refused("a text holds half of a surrogate pair", code="not_unicode") from error


def _too_deep() -> InvalidRequestError:
    return _refused(f"values are nested deeper than {MAX_DEPTH}", code="too_deep")


def _refused(what: str, *, code: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the body cannot be read: {what}", code=code, remedy="send one JSON object in UTF-8", param="body"
    )
