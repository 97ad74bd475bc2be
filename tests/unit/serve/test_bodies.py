"""Bodies are read strictly, and never raise anything but the refusal."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.bodies import MAX_DEPTH, parse_body
from serve.errors import InvalidRequestError

ALL_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xff{}", "not_utf8"),
        (b"{", "not_json"),
        (b"", "not_json"),
        (b'{"a": NaN}', "not_json"),
        (b'{"a": -Infinity}', "not_json"),
        (b'{"a": 1e999}', "number_out_of_range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number_out_of_range"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate_key"),
        (b'{"a": "\\ud800"}', "not_unicode"),
        (b'{"\\udfff": 1}', "not_unicode"),
        (b"[" * 40 + b"]" * 40, "too_deep"),
        (b"[" * 200_000 + b"]" * 200_000, "too_deep"),
    ],
)
def test_what_is_ambiguous_or_no_json_is_refused_by_name(raw: bytes, code: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_body(raw)
    assert refused.value.code == code
    assert refused.value.remedy


def test_the_deepest_value_that_is_allowed_is_read() -> None:
    raw = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert parse_body(raw) == json.loads(raw)


@given(ALL_JSON)
def test_whatever_is_json_comes_back_as_it_was(value: object) -> None:
    assert parse_body(json.dumps(value, ensure_ascii=False).encode("utf-8")) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(InvalidRequestError):
        parse_body(raw)
