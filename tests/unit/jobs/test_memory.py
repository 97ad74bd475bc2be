"""A table of memory by stage, from a configuration without weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import whyrank
from jobs.memory import GIB, fits, run_memory
from jobs.training_config import MemoryJob
from rerank_core.errors import ArtefactError, ConfigError
from rerank_core.models.memory import MemoryEstimate

ROOT = Path(__file__).resolve().parents[3]
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
ESTIMATE = MemoryEstimate(
    zero_stage=2,
    is_offloaded=False,
    parameters=4 * GIB,
    gradients=GIB,
    optimizer=3 * GIB,
    activations=GIB,
    step=GIB,
    host=0,
)


@pytest.fixture
def llama(tmp_path: Path) -> MemoryJob:
    """A folder that holds only the configuration of a Llama with 8 B weights, to be trained on four GPUs."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return MemoryJob(
        model=str(tmp_path), num_gpus=4, gpu_memory_gib=80, precision="bf16", max_length=2048, lora_rank=0
    )


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """Return the cells of the printed table by stage and place of the optimiser."""
    cells = [line.split() for line in text.splitlines()]
    return {(row[0], row[1]): row[2:] for row in cells if len(row) >= 9 and row[1] in ("CPU", "GPU")}


def test_the_table_says_which_stages_of_an_8b_model_fit(
    llama: MemoryJob, capsys: pytest.CaptureFixture[str]
) -> None:
    estimates = run_memory(llama)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "7,504.9 million parameters" in " ".join(text.split())
    table = rows(text)
    assert list(table) == [*((s, "GPU") for s in "0123"), *((s, "CPU") for s in "123")]
    assert [cells[-1] for cells in table.values()] == ["no"] * 5 + ["yes"] * 2
    for cells, estimate in zip(table.values(), estimates, strict=True):
        assert float(cells[-3]) == pytest.approx(estimate.gpu / GIB, abs=0.01)


def test_adapters_and_checkpointing_make_a_smaller_gpu_do(
    llama: MemoryJob, capsys: pytest.CaptureFixture[str]
) -> None:
    run_memory(replace(llama, lora_rank=16, gradient_checkpointing=True, num_gpus=1, gpu_memory_gib=24))
    text = capsys.readouterr().out
    assert "41.9 million trained" in " ".join(text.split())
    assert rows(text)["0", "GPU"][-1] == "yes"


def test_without_the_memory_of_a_gpu_nothing_is_said_to_fit(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_memory(MemoryJob(model=str(model_folder), max_length=64))
    text = capsys.readouterr().out
    assert "fits" not in text
    assert len(rows(text)) == 7


def test_a_tenth_of_a_gpu_is_left_free() -> None:
    assert ESTIMATE.gpu == 9 * GIB
    assert fits(ESTIMATE, gpu_memory_gib=10)
    assert not fits(ESTIMATE, gpu_memory_gib=9.9)


def test_fewer_layers_take_less(llama: MemoryJob) -> None:
    whole, half = (run_memory(replace(llama, num_layers=n))[0] for n in (32, 16))
    assert half.activations == whole.activations / 2
    assert half.parameters < whole.parameters


def test_more_tokens_than_the_model_has_positions_are_refused(llama: MemoryJob) -> None:
    with pytest.raises(ConfigError, match="8192 positions; lower --max-length"):
        run_memory(replace(llama, max_length=8193))


def test_a_configuration_that_asks_for_code_is_refused(llama: MemoryJob) -> None:
    path = Path(llama.model) / "config.json"
    path.write_text(json.dumps(LLAMA_8B | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ArtefactError, match="remote code"):
        run_memory(llama)


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert whyrank.main(["memory", "--model", str(tmp_path)]) == 2
    assert f"{tmp_path / 'config.json'} is missing" in capsys.readouterr().err


def test_an_estimate_starts_no_ray(llama: MemoryJob) -> None:
    command = ["memory", "--model", llama.model]
    program = f"import sys, whyrank; whyrank.main({command}); sys.exit('ray' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "optimiser" in result.stdout
