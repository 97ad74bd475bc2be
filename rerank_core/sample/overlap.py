"""How much wording the sample's documents share: `python -m rerank_core.sample.overlap`."""

from __future__ import annotations

import json
import re
import sys
from importlib import resources
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def ngrams(text: str, *, n: int) -> frozenset[tuple[str, ...]]:
    """Return the set of runs of `n` lower-case words of a text."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(zip(*(words[start:] for start in range(n)), strict=False))


def pairwise_overlap(texts: Mapping[str, str], *, n: int) -> list[tuple[float, str, str]]:
    """Return, per pair of texts, the share of the smaller set of n-grams that both hold; largest first."""
    grams = {key: ngrams(text, n=n) for key, text in texts.items()}
    overlaps = []
    for first, second in combinations(sorted(grams), 2):
        smaller = min(len(grams[first]), len(grams[second]))
        overlaps.append((len(grams[first] & grams[second]) / max(smaller, 1), first, second))
    return sorted(overlaps, key=lambda row: (-row[0], row[1], row[2]))


def sample_texts() -> dict[str, str]:
    """Return title and text of every document of the embedded sample by doc_id."""
    lines = (
        resources.files("rerank_core.sample")
        .joinpath("corpus.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    documents = [json.loads(line) for line in lines]
    return {document["doc_id"]: f"{document['title']}\n{document['text']}" for document in documents}


def describe(overlaps: list[tuple[float, str, str]], *, n: int) -> str:
    """Return the overlap's distribution and its largest pairs as text."""
    values = [overlap for overlap, _, _ in overlaps]
    edges = (0.0, 0.001, 0.01, 0.02, 0.05, 1.01)
    lines = [
        f"{n}-gram overlap of {len(values)} pairs: mean {sum(values) / len(values):.6f},"
        f" largest {values[0]:.4f}"
    ]
    lines += [
        f"  {low:.3f} to {high:.3f}: {sum(low <= v < high for v in values)}" for low, high in pairwise(edges)
    ]
    lines += [f"  {overlap:.4f} {first} {second}" for overlap, first, second in overlaps[:3]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(describe(pairwise_overlap(sample_texts(), n=5), n=5) + "\n")
