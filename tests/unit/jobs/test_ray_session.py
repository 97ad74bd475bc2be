"""A job that does not fit on the cluster is refused before anything waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from jobs.ray_session import Need, _connect, check_need, device_here, require_shared
from rerank_core.errors import ResourceError

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}


@pytest.mark.parametrize(
    "need",
    [
        Need(num_workers=8),
        Need(num_workers=2, cpus=4, gpus=1),
        Need(num_workers=4, cpus=0.5, gpus=0.5),
    ],
)
def test_what_fits_is_accepted(need: Need) -> None:
    check_need(need, CLUSTER)


def test_too_few_cpus_are_named_with_the_remedy() -> None:
    message = (
        r"the job needs 9 CPU \(6 workers with 1\.5 each\), but the cluster has 8;"
        r" lower --num-workers or add nodes"
    )
    with pytest.raises(ResourceError, match=message):
        check_need(Need(num_workers=6, cpus=1.5), CLUSTER)


def test_too_few_gpus_are_named() -> None:
    with pytest.raises(ResourceError, match=r"needs 3 GPU \(3 workers with 1 each\), but the cluster has 2;"):
        check_need(Need(num_workers=3, gpus=1), CLUSTER)


def test_a_cluster_that_lists_no_gpu_has_none() -> None:
    check_need(Need(num_workers=2), {"CPU": 2.0})
    with pytest.raises(ResourceError, match=r"needs 1 GPU .* cluster has 0;"):
        check_need(Need(num_workers=1, gpus=1), {"CPU": 2.0})


def test_a_model_goes_where_torch_sees_a_device() -> None:
    assert device_here() == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_address_where_nothing_listens_is_named_at_once() -> None:
    with pytest.raises(ResourceError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"):
        _connect("127.0.0.1:1")


@pytest.mark.ray
def test_a_folder_that_workers_do_not_find_is_named(ray_instance: None, tmp_path: Path) -> None:
    require_shared(tmp_path)
    with pytest.raises(ResourceError, match="put inputs and outputs on storage that all nodes share"):
        require_shared(tmp_path / "elsewhere")
