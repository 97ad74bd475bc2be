"""What a running cluster lacks, told from node descriptions alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster import check
from cluster.check import HEAD_MARK, NodeType, load_node_types, missing_nodes
from rerank_core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
HEAD = NodeType("head", 1, {"CPU": 0, HEAD_MARK: 1})
CPU_WORKER = NodeType("cpu_worker", 1, {"CPU": 8})
GPU_WORKER = NodeType("gpu_worker", 2, {"CPU": 8, "GPU": 1})


def node(*, alive: bool = True, **resources: float) -> dict[str, object]:
    return {"Alive": alive, "Resources": {"node:10.0.0.2": 1.0, **resources}}


def head_node(**resources: float) -> dict[str, object]:
    return {"Alive": True, "Resources": {HEAD_MARK: 1.0, **resources}}


def test_a_complete_cluster_lacks_nothing() -> None:
    nodes = [node(CPU=8, GPU=1), node(CPU=8), head_node(), node(CPU=8, GPU=1)]
    assert missing_nodes([HEAD, CPU_WORKER, GPU_WORKER], nodes) == []


def test_more_than_asked_for_is_no_problem() -> None:
    nodes = [head_node(CPU=4), *(node(CPU=64, GPU=8) for _ in range(5))]
    assert missing_nodes([HEAD, CPU_WORKER, GPU_WORKER], nodes) == []


def test_each_type_with_too_few_nodes_gets_a_line_in_the_order_of_the_file() -> None:
    assert missing_nodes([HEAD, CPU_WORKER, GPU_WORKER], [node(CPU=8, GPU=1)]) == [
        "head: 0 of 1 nodes found",
        "cpu_worker: 0 of 1 nodes with at least 8 CPU found",
        "gpu_worker: 1 of 2 nodes with at least 8 CPU and 1 GPU found",
    ]


def test_a_gpu_node_is_not_spent_on_a_type_that_asks_for_cpus_alone() -> None:
    nodes = [node(CPU=8, GPU=1), node(CPU=8, GPU=1), node(CPU=16)]
    assert missing_nodes([CPU_WORKER, GPU_WORKER], nodes) == []


def test_the_head_is_not_spent_on_a_worker_type() -> None:
    assert missing_nodes([CPU_WORKER, HEAD], [head_node(CPU=8)]) == [
        "cpu_worker: 0 of 1 nodes with at least 8 CPU found"
    ]


def test_a_dead_node_does_not_count() -> None:
    assert missing_nodes([CPU_WORKER], [node(alive=False, CPU=8)]) != []


def test_a_node_with_too_little_of_one_resource_does_not_count() -> None:
    assert missing_nodes([GPU_WORKER], [node(CPU=4, GPU=1), node(CPU=8, GPU=1)]) == [
        "gpu_worker: 1 of 2 nodes with at least 8 CPU and 1 GPU found"
    ]


def test_the_file_asks_for_its_head_once_and_for_min_workers_of_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "head_node_type: big\n"
        "available_node_types:\n"
        "  big: {resources: {CPU: 2}, node_config: {}}\n"
        "  few: {resources: {CPU: 4}, node_config: {}, min_workers: 3}\n"
        "  none: {resources: {CPU: 1}, node_config: {}}\n"
    )
    assert load_node_types(path) == [
        NodeType("big", 1, {"CPU": 2, HEAD_MARK: 1}),
        NodeType("few", 3, {"CPU": 4}),
        NodeType("none", 0, {"CPU": 1}),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1", "is not YAML"),
        ("just words", "holds no keys"),
        ("cluster_name: a", "lacks the key 'head_node_type'"),
        ("head_node_type: a", "lacks the key 'available_node_types'"),
        ("{head_node_type: a, available_node_types: {b: {resources: {}}}}", "'a' is not one of"),
        ("{head_node_type: a, available_node_types: {a: {}}}", "'a' lacks the key 'resources'"),
    ],
)
def test_a_broken_cluster_file_is_named_with_its_problem(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_node_types(path)
    assert str(path) in str(caught.value)


def test_a_missing_cluster_file_says_which_flag_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check", "--config", str(tmp_path / "absent.yaml")])
    assert check.main() == 2
    assert "--config" in capsys.readouterr().err


def test_the_projects_own_file_asks_for_a_head_cpu_workers_and_gpu_workers() -> None:
    names = [(wanted.name, wanted.num_nodes) for wanted in load_node_types(ROOT / "ray_config.yaml")]
    assert names == [("head", 1), ("cpu_worker", 1), ("gpu_worker", 2)]
