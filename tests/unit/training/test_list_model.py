"""A list's gradients do not depend on how its documents are put into rows and batches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer, pad
from rerank_core.models.tiny import save_tiny_causal, save_tiny_encoder
from rerank_core.records import Document, Query
from rerank_core.training.batching import RankingCollator, RankingExample, contrastive_example
from rerank_core.training.list_model import ListModel
from tests.benchmarks.preference_training import (
    Contest,
    Step,
    fill_by_list,
    fill_by_pairs,
    frozen_reference,
    in_double,
    largest_difference,
    list_scores,
)

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["daily sea surface temperature of the north sea", "snow", "monthly river discharge at vienna"]
DOCUMENTS = [Document(str(n), " ".join(TEXTS[n % 3 :]) + " sea" * n) for n in range(7)]
NUM_TOKENS = 64


@pytest.fixture(params=["causal", "encoder"])
def scorer(tmp_path: Path, request: pytest.FixtureRequest) -> LanguageModelScorer:
    """Return a scorer in fp64, with dropout off."""
    save = save_tiny_causal if request.param == "causal" else save_tiny_encoder
    save(tmp_path, TEXTS, seed=0)
    model = build_model(tmp_path, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(tmp_path), model.config, head="linear", max_length=NUM_TOKENS)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return LanguageModelScorer(in_double(model), encoder, digest="untrained")


@pytest.fixture
def examples(scorer: LanguageModelScorer) -> list[RankingExample]:
    queries = [Query("q", "sea surface"), Query("r", "river")]
    return [contrastive_example(query, DOCUMENTS, encoder=scorer.encoder) for query in queries]


def batch(scorer: LanguageModelScorer, examples: list[RankingExample], *, max_tokens: int) -> dict[str, Any]:
    collator = RankingCollator(pad_id=0, can_pack=scorer.model.can_pack, max_tokens=max_tokens)
    inputs = collator(examples)
    del inputs["examples"]
    return inputs


def list_loss(scores: Tensor) -> Tensor:
    """Something in which every score has a gradient of its own."""
    return (scores * torch.linspace(-1, 2, len(scores), dtype=scores.dtype)).sum() + scores.logsumexp(0)


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip((name for name, _ in model.named_parameters()), grads, strict=True))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    largest = max(grad.norm() for grad in theirs.values())
    for name, grad in theirs.items():  # that of a key's bias is 0 but for rounding
        assert (ours[name] - grad).norm() <= 1e-10 * grad.norm() + 1e-14 * largest, name


def num_saved(model: ListModel, inputs: dict[str, Any]) -> int:
    """Return how many numbers a forward pass keeps for the backward pass."""
    saved = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return saved


def test_gradients_are_those_of_every_document_scored_alone(
    scorer: LanguageModelScorer, examples: list[RankingExample]
) -> None:
    model = ListModel(scorer.model)
    scores = model(**batch(scorer, examples, max_tokens=8192))
    alone = [scorer.model(**pad([d], pad_id=0)) for example in examples for d in example.documents]
    torch.testing.assert_close(scores, torch.cat(alone), atol=1e-12, rtol=1e-12)
    assert_same(gradients(list_loss(scores), model), gradients(list_loss(torch.cat(alone)), model))


@pytest.mark.parametrize("scorer", ["causal"], indirect=True)
def test_the_benchmarks_two_ways_to_train_fill_the_same_gradients(
    scorer: LanguageModelScorer, examples: list[RankingExample]
) -> None:
    reference = frozen_reference(scorer.model)
    scores, _ = list_scores(ListModel(reference), examples[0], pad_id=0)
    example = replace(examples[0], reference_scores=tuple(scores))
    model = ListModel(scorer.model)
    ours = Step("list", partial(fill_by_list, model, example, pad_id=0))
    pairwise = Step(
        "pairs", partial(fill_by_pairs, scorer.model, example, reference=reference, size=4, pad_id=0)
    )
    assert largest_difference(Contest(model, ours, (pairwise,), None)) < 1e-10


@pytest.mark.parametrize("max_tokens", [1, 60, 120])
def test_a_token_budget_changes_no_gradient(
    scorer: LanguageModelScorer, examples: list[RankingExample], max_tokens: int
) -> None:
    model = ListModel(scorer.model)
    whole, split = (batch(scorer, examples, max_tokens=limit) for limit in (8192, max_tokens))
    assert (len(whole["batches"]), len(split["batches"]) > 1) == (1, True)
    assert_same(gradients(list_loss(model(**split)), model), gradients(list_loss(model(**whole)), model))


def test_beyond_the_budget_no_batch_keeps_its_activations(
    scorer: LanguageModelScorer, examples: list[RankingExample]
) -> None:
    model = ListModel(scorer.model)
    whole, split = (batch(scorer, examples, max_tokens=limit) for limit in (8192, 60))
    assert num_saved(model, split) < 0.01 * num_saved(model, whole)


def test_layers_can_be_checkpointed_inside_a_batch(
    scorer: LanguageModelScorer, examples: list[RankingExample]
) -> None:
    model = ListModel(scorer.model).train()
    inputs = batch(scorer, examples, max_tokens=8192)
    plain, saved = gradients(list_loss(model(**inputs)), model), num_saved(model, inputs)
    scorer.model.backbone.gradient_checkpointing_enable()
    assert num_saved(model, inputs) < 0.5 * saved
    assert_same(gradients(list_loss(model(**inputs)), model), plain)


def test_the_configuration_is_the_backbones(scorer: LanguageModelScorer) -> None:
    assert ListModel(scorer.model).config is scorer.model.backbone.config
