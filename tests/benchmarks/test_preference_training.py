"""The goals of a training step on preference pairs, as the benchmark measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).with_name("preference_training.py")
NUM_ROUNDS = 3
MAX_DIFFERENCE = 1e-5
MAX_PASSES_K64 = 1.2


@pytest.mark.bench
@pytest.mark.parametrize(
    ("prefix", "vs_reward_trainer", "vs_pairwise_dpo"), [(40, 6, 6), (80, 8, 10)], ids=["40", "80"]
)
def test_a_list_in_one_pass_costs_a_fraction_of_its_pairs_at_equal_gradients(
    prefix: int, vs_reward_trainer: float, vs_pairwise_dpo: float
) -> None:
    command = [sys.executable, str(BENCHMARK), "--rounds", str(NUM_ROUNDS), "--prefix", str(prefix)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["vs_reward_trainer"] >= vs_reward_trainer, result.stdout
    assert found["vs_pairwise_dpo"] >= vs_pairwise_dpo, result.stdout
    assert found["grad_rel_diff"] <= MAX_DIFFERENCE, result.stdout
    assert found["ppo_passes_k64"] <= MAX_PASSES_K64, result.stdout
