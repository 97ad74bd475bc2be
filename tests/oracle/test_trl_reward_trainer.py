"""Bradley–Terry, and DPO at beta 1, against TRL's RewardTrainer: same tokens and weights, loss and gradients.

TRL scores both documents of each pair; ours scores each document of the query once and builds the pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import LlamaForSequenceClassification
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from rerank_core.models.build import build_encoder, load_config, load_tokenizer
from rerank_core.models.scorer import SingleNeuronModel
from rerank_core.models.tiny import save_tiny_causal
from rerank_core.records import Document, Query
from rerank_core.training.batching import RankingCollator, RankingExample
from rerank_core.training.list_model import ListModel
from rerank_core.training.steps import (
    QueryLoss,
    batch_loss,
    dpo_query_loss,
    reward_model_query_loss,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

QUERY = Query("q", "sea ice")
TEXTS = ["sea ice depth", "river flow in the old delta", "snow", "ice", "a map of the warm sea"]
REFERENCE_SCORES = (0.5, -1.0, 2.0, 0.25, -0.75)
PAIRS = [(0, 1), (0, 2), (3, 1), (3, 2), (4, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    save_tiny_causal(folder, [*TEXTS, QUERY.text], seed=0)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)


@pytest.fixture(scope="module")
def ours(theirs: LlamaForSequenceClassification) -> SingleNeuronModel:
    """Our head on the very parameters of theirs; its bias cancels in every pair."""
    head = nn.Linear(theirs.config.hidden_size, 1)
    head.weight = theirs.score.weight
    return SingleNeuronModel(theirs.model, head, pooling="last", has_token_types=False)


@pytest.fixture(scope="module")
def example(folder: Path) -> RankingExample:
    encoder = build_encoder(load_tokenizer(folder), load_config(folder), head="linear", max_length=64)
    return RankingExample(
        query_id=QUERY.query_id,
        documents=tuple(encoder.encode(QUERY, Document(text, text)) for text in TEXTS),
        grades=(2, 0, 0, 2, 1),
        max_grade=2,
        chosen=tuple(chosen for chosen, _ in PAIRS),
        rejected=tuple(rejected for _, rejected in PAIRS),
        reference_scores=REFERENCE_SCORES,
    )


def gradients(loss: Tensor, model: LlamaForSequenceClassification) -> dict[str, Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def trl_loss(
    model: LlamaForSequenceClassification,
    example: RankingExample,
    *,
    folder: Path,
    further_columns: dict[str, list[float]],
) -> Tensor:
    """Return the loss of TRL's trainer on the example's pairs, batched by TRL's own collator."""
    columns: dict[str, list[Any]] = {
        "chosen_ids": [list(example.documents[chosen].input_ids) for chosen, _ in PAIRS],
        "rejected_ids": [list(example.documents[rejected].input_ids) for _, rejected in PAIRS],
    }
    settings = RewardConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=len(PAIRS),
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
    )
    trainer = RewardTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict(columns | further_columns),
        processing_class=load_tokenizer(folder),
    )
    (batch,) = trainer.get_train_dataloader()
    loss: Tensor = trainer.compute_loss(model, batch)
    return loss


def our_loss(model: SingleNeuronModel, example: RankingExample, *, query_loss: QueryLoss) -> Tensor:
    collator = RankingCollator(
        pad_id=model.backbone.config.pad_token_id, can_pack=model.can_pack, max_tokens=8192
    )
    batch = collator([example])
    examples = batch.pop("examples")
    return batch_loss(ListModel(model)(**batch), examples, query_loss=query_loss, step=0)["loss"]


def assert_equal_loss_and_gradients(
    ours: Tensor, expected: Tensor, *, model: LlamaForSequenceClassification
) -> None:
    assert ours.item() == pytest.approx(expected.item(), abs=1e-6)
    wanted = gradients(expected, model)
    for name, found in gradients(ours, model).items():
        scale = wanted[name].abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-5 * scale, msg=name)


def test_bradley_terry_is_trls_reward_loss(
    ours: SingleNeuronModel, theirs: LlamaForSequenceClassification, example: RankingExample, folder: Path
) -> None:
    assert_equal_loss_and_gradients(
        our_loss(ours, example, query_loss=reward_model_query_loss("bradley_terry")),
        trl_loss(theirs, example, folder=folder, further_columns={}),
        model=theirs,
    )


def test_dpo_at_beta_1_is_trls_reward_loss_with_the_reference_margin(
    ours: SingleNeuronModel, theirs: LlamaForSequenceClassification, example: RankingExample, folder: Path
) -> None:
    margins = [REFERENCE_SCORES[chosen] - REFERENCE_SCORES[rejected] for chosen, rejected in PAIRS]
    assert_equal_loss_and_gradients(
        our_loss(ours, example, query_loss=dpo_query_loss("sigmoid", beta=1.0)),
        trl_loss(theirs, example, folder=folder, further_columns={"margin": margins}),
        model=theirs,
    )
