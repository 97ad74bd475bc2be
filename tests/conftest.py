"""What all tests share: one Ray, no network, printed seeds."""

from __future__ import annotations

import os
import sys
import zlib
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the seed from the command line, so that a test can be tried on other numbers."""
    parser.addoption("--seed", type=int, default=0, help="seed of the `rng` fixture and of torch")


def pytest_configure(config: pytest.Config) -> None:
    """Forbid downloads before any test module loads a library that would try one."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    hypothesis.settings.register_profile("whyrank", deadline=None, derandomize=True, print_blob=True)
    hypothesis.settings.load_profile("whyrank")


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seeds."""
    return f"seed: {config.getoption('--seed')} (--seed), hypothesis: derandomised"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator of the test's own: the same numbers whichever tests run beside it."""
    return np.random.default_rng(
        [request.config.getoption("--seed"), zlib.crc32(request.node.nodeid.encode())]
    )


@pytest.fixture(autouse=True)
def seeded_torch(request: pytest.FixtureRequest) -> None:
    """Seed torch where a test uses it; layers draw their first weights from its global generator."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(request.config.getoption("--seed"))


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[None]:
    """Start the local Ray that all tests share, with at least eight logical CPUs."""
    from jobs.ray_session import ray_session

    with ray_session(address=None):
        yield
