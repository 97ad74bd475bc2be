"""What attributions cost on a GPU: shap's coalitions in lock-step on a tree, against call after call.

    python tests/gpu/attribution.py --documents 16
    python tests/gpu/attribution.py --device cpu --layers 2 --width 64 --documents 2 --tokens 16   # a dry run

The model has the shape of Qwen3-0.6B and random weights in bfloat16; texts are random tokens behind a prefix
of 80 tokens, which eight documents share. Neither Ray nor shap nor any file is needed: the rival makes the
calls that shap's Partition explainer makes, six padded coalitions of one document at a time (tests/oracle).
Values are compared in float64 on two layers in the same run. Times are wall seconds, rivals in turn. The last
line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, Qwen3Config

from rerank_core.attribution.estimators import PartitionOwen, PrunedOwen
from rerank_core.attribution.masking import MaskedText
from rerank_core.attribution.search import SearchResult, run_searches
from rerank_core.models.prefix_tree import PrefixTree
from rerank_core.models.scorer import EncodedPair, SingleNeuronModel, pad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_core.attribution.estimators import Estimator

MAX_EVALS = 500
PREFIX = 80
DOCUMENTS_PER_QUERY = 8
VOCABULARY = 32_000
MASK_ID, END_ID = 1, 2
SEED = 0


@dataclass(frozen=True, slots=True)
class TokenText:
    """Random tokens as a game: a run of tokens that are off leaves one mask token."""

    prefix: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def masked(self) -> MaskedText:
        """The game's shape: as many players as tokens, one letter each."""
        spans = [(2 * place, 2 * place + 1) for place in range(len(self.ids))]
        return MaskedText("w " * len(self.ids), spans, mask_token="...", is_collapsing=True)

    def left(self, coalition: int) -> EncodedPair:
        """Return the tokens that are left."""
        kept: list[int] = []
        for place, token in enumerate(self.ids):
            if coalition >> place & 1:
                kept.append(token)
            elif not kept or kept[-1] != MASK_ID:
                kept.append(MASK_ID)
        ids = (*self.prefix, *kept, END_ID)
        return EncodedPair(ids, len(self.prefix), len(ids) - 1, is_truncated=False)


def build_model(options: argparse.Namespace, *, num_layers: int, dtype: torch.dtype) -> SingleNeuronModel:
    """Return a model of random weights."""
    torch.manual_seed(SEED)
    num_heads = max(options.width // 64, 2)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=options.width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=max(num_heads // 2, 1),
        head_dim=128,
        intermediate_size=3 * options.width,
    )
    head = nn.Linear(options.width, 1)
    model = SingleNeuronModel(AutoModel.from_config(config), head, pooling="last", has_token_types=False)
    return model.to(options.device, dtype).eval()


def build_texts(options: argparse.Namespace) -> list[TokenText]:
    """Return random texts; those of one query share their prefix."""
    rng = np.random.default_rng(SEED)

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(10, VOCABULARY, size=number))

    prefixes = [tokens(PREFIX) for _ in range(0, options.documents, DOCUMENTS_PER_QUERY)]
    return [
        TokenText(prefixes[number // DOCUMENTS_PER_QUERY], tokens(options.tokens))
        for number in range(options.documents)
    ]


@torch.inference_mode()
def call_after_call(
    model: SingleNeuronModel, texts: Sequence[TokenText], estimator: Estimator
) -> list[SearchResult]:
    """Attribute one document after the other, each round's coalitions padded in one call."""
    device = model.head.weight.device
    results = []
    for text in texts:

        def scores(asked: list[tuple[int, int]], text: TokenText = text) -> list[float]:
            inputs = pad([text.left(coalition) for _, coalition in asked], pad_id=0)
            return list(model(**{name: tensor.to(device) for name, tensor in inputs.items()}).tolist())

        results += run_searches([estimator.search(text.masked, seed=SEED)], scores)
    return results


def on_trees(
    model: SingleNeuronModel, texts: Sequence[TokenText], estimator: Estimator
) -> list[SearchResult]:
    """Attribute all documents in lock-step on one tree."""
    tree = PrefixTree(model)
    return run_searches(
        [estimator.search(text.masked, seed=SEED) for text in texts],
        lambda asked: tree.score(
            [array("i", texts[number].left(coalition).input_ids) for number, coalition in asked]
        ),
    )


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall seconds of some work; its scores come back to the host, so nothing is left running."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def largest_difference(options: argparse.Namespace, texts: Sequence[TokenText]) -> float:
    """Return the largest difference of values in float64 on two layers, as a share of the largest value."""
    model = build_model(options, num_layers=2, dtype=torch.float64)
    estimator = PartitionOwen(MAX_EVALS)
    theirs, ours = call_after_call(model, texts, estimator), on_trees(model, texts, estimator)
    return max(
        float(np.abs(np.subtract(one.values, other.values)).max() / np.abs(one.values).max())
        for one, other in zip(theirs, ours, strict=True)
    )


def main() -> None:
    """Measure, print a table, and the summary as JSON."""
    options = parse_arguments()
    texts = build_texts(options)
    difference = largest_difference(options, texts[:2])
    model = build_model(options, num_layers=options.layers, dtype=torch.bfloat16)
    same, fewer = PartitionOwen(MAX_EVALS), PrunedOwen(options.pruned_evals)
    rivals = {
        "call after call": lambda: call_after_call(model, texts[: options.rival_documents], same),
        "same values, on trees": lambda: on_trees(model, texts, same),
        f"pruned, {options.pruned_evals} evaluations": lambda: on_trees(model, texts, fewer),
    }
    for work in rivals.values():
        work()  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(options.rounds):
        for name, work in rivals.items():
            seconds[name].append(seconds_of(work))
    counts = [options.rival_documents, len(texts), len(texts)]
    rates = {
        name: count / float(np.median(seconds[name])) for name, count in zip(rivals, counts, strict=True)
    }
    for name, rate in rates.items():
        sys.stdout.write(f"{name:32}{rate:10.2f} documents/s\n")
    slow, same_rate, fewer_rate = rates.values()
    summary = {
        "documents_per_s": round(same_rate, 2),
        "p1_gpu": round(same_rate / slow, 1),
        "p2_gpu": round(fewer_rate / slow, 1),
        "max_rel_diff": difference,
    }
    sys.stdout.write(json.dumps(summary) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a document")
    parser.add_argument("--documents", type=int, default=16, help="documents in lock-step")
    parser.add_argument("--rival-documents", type=int, default=2, help="documents of the rival's round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pruned-evals", type=int, default=250, help="evaluations of the pruned search")
    return parser.parse_args()


if __name__ == "__main__":
    main()
