"""API keys: made, kept as digests in a file, and recognised."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

logger = logging.getLogger("whyrank.serve")

PREFIX = "wr_"
"""What every key begins with, so that a scanner of secrets can find one that leaked."""

CHECK_INTERVAL_S = 1.0
"""How long a changed file may go unnoticed."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key: a digest, which hides the 256 random bits that a key holds."""

    name: str
    sha256: str
    created: str


def add_key(path: Path, name: str) -> str:
    """Add a new key to a file, which is made where there is none, and return the key: it is not kept.

    Several keys may have one name, so that a new one can be handed out before the old one is revoked.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(tz=UTC).isoformat(timespec="seconds")
    with _changing(path):
        _write_keys(path, [*(_read_keys(path) if path.exists() else []), Key(name, _digest(key), created)])
    return key


def revoke_keys(path: Path, name: str) -> int:
    """Take all keys of a name out of a file; return how many there were.

    Raises:
        ConfigError: the file has no key of that name.
    """
    with _changing(path):
        keys = _read_keys(path)
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            raise ConfigError(
                f"{path} holds no key named {name!r}; it has {sorted({key.name for key in keys})}"
            )
        _write_keys(path, kept)
    return len(keys) - len(kept)


def revoke_oldest_key(path: Path, name: str) -> None:
    """Take the oldest key of a name out of a file, which completes its rotation.

    Raises:
        ConfigError: the file has no second key of that name.
    """
    with _changing(path):
        keys = _read_keys(path)
        own = [key for key in keys if key.name == name]
        if len(own) < 2:
            raise ConfigError(
                f"{path} holds {len(own)} keys named {name!r}; add the new one first, and hand it out"
            )
        _write_keys(path, [key for key in keys if key is not own[0]])


class KeyRing:
    """The keys of a file, read again when it has changed."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._state = _state(path) if path.exists() else (0, 0, 0)  # first: a change after it is noticed
        self._keys = _read_keys(path)
        self._checked = clock()

    def name_of(self, key: str) -> str | None:
        """Return the name of a key, or None for one that is not known; the time taken tells neither."""
        self._refresh()
        digest = _digest(key)
        found = None
        for known in self._keys:  # all of them, whichever fits
            if hmac.compare_digest(known.sha256, digest):
                found = known.name
        return found

    def _refresh(self) -> None:
        """Take over a changed file; one that cannot be read leaves the keys as they were."""
        if self._clock() - self._checked < CHECK_INTERVAL_S:
            return
        self._checked = self._clock()
        try:
            state = _state(self._path)
            if state != self._state:
                self._keys, self._state = _read_keys(self._path), state
        except (ConfigError, OSError) as error:
            logger.error("%s; the keys that were read before stay valid", error)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_keys(path: Path) -> list[Key]:
    try:
        keys = [Key(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["keys"]]
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is missing; make it with `whyrank key --keys {path} --name someone`"
        ) from error
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no file of keys ({type(error).__name__}: {error}); make a new one with `whyrank key`"
        ) from error
    if not all(isinstance(key.sha256, str) and key.sha256.isascii() for key in keys):  # as it is compared
        raise ConfigError(f"{path} is no file of keys; make a new one with `whyrank key`")
    return keys


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Let one process at a time change a file: who read it before another wrote would write that away."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file in one step, readable by its owner alone."""
    content = json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n"
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
    Path(temporary).replace(path)
