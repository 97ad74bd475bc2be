"""Keys are recognised, kept as digests, and changed under a running server."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from rerank_core.errors import ConfigError
from serve.auth import CHECK_INTERVAL_S, KeyRing, add_key, revoke_keys, revoke_oldest_key

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_known_by_its_name_and_others_are_not(path: Path) -> None:
    first, second = add_key(path, "a"), add_key(path, "b")
    ring = KeyRing(path)
    assert [ring.name_of(first), ring.name_of(second)] == ["a", "b"]
    for wrong in ("", "wr_", first[:-1], first + "x", first.upper(), "\ud800"):
        assert ring.name_of(wrong) is None


def test_the_file_holds_no_key_and_is_its_owners_alone(path: Path) -> None:
    key = add_key(path, "a")
    assert key not in path.read_text()
    assert key[3:] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_are_rotated_without_a_restart(path: Path) -> None:
    clock = Clock()
    old = add_key(path, "a")
    ring = KeyRing(path, clock=clock)
    new = add_key(path, "a")
    clock.now += CHECK_INTERVAL_S
    assert ring.name_of(old) == ring.name_of(new) == "a"  # both, until the old one is taken away
    revoke_oldest_key(path, "a")
    clock.now += CHECK_INTERVAL_S
    assert (ring.name_of(old), ring.name_of(new)) == (None, "a")


def test_the_only_key_is_not_rotated_away(path: Path) -> None:
    add_key(path, "a")
    with pytest.raises(ConfigError, match="add the new one first"):
        revoke_oldest_key(path, "a")


def test_all_keys_of_a_name_can_be_revoked(path: Path) -> None:
    key, other = add_key(path, "a"), add_key(path, "b")
    assert revoke_keys(path, "a") == 1
    ring = KeyRing(path)
    assert (ring.name_of(key), ring.name_of(other)) == (None, "b")
    with pytest.raises(ConfigError, match="no key named 'a'"):
        revoke_keys(path, "a")


@pytest.mark.parametrize("broken", ["", "[]", '{"keys": [{"name": "a"}]}', '{"keys": 3}', "[" * 100_000])
def test_a_broken_file_is_refused_at_the_start_and_ignored_later(
    path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_key(path, "a")
    clock = Clock()
    ring = KeyRing(path, clock=clock)
    path.write_text(broken)
    with pytest.raises(ConfigError, match="no file of keys"):
        KeyRing(path)
    clock.now += CHECK_INTERVAL_S
    assert ring.name_of(key) == "a"
    assert "stay valid" in caplog.text
    assert json.dumps(key) not in caplog.text


def test_a_missing_file_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(ConfigError, match="whyrank key --keys"):
        KeyRing(path)


def test_a_file_that_vanishes_leaves_the_keys_valid(path: Path) -> None:
    key = add_key(path, "a")
    clock = Clock()
    ring = KeyRing(path, clock=clock)
    os.unlink(path)
    clock.now += CHECK_INTERVAL_S
    assert ring.name_of(key) == "a"
