"""On a GPU, documents behind one shared prefix score as each does alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, LlamaConfig

from rerank_core.models.scorer import EncodedPair, SingleNeuronModel, pad, pair_batches

pytestmark = pytest.mark.gpu

WIDTH, VOCABULARY, PREFIX = 256, 1000, 60
NUM_DOCUMENTS, MAX_TOKENS = 40, 4096


def pairs() -> list[EncodedPair]:
    """Return documents of 20 to 98 random tokens behind one prefix."""
    start, *documents = (
        torch.randint(1, VOCABULARY, (length,)).tolist() for length in (PREFIX, *range(20, 100, 2))
    )
    return [EncodedPair((*start, *ids), PREFIX, PREFIX + len(ids), is_truncated=False) for ids in documents]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_score_as_padded_ones(attention: str, dtype: torch.dtype, tolerance: float) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=2 * WIDTH,
    )
    backbone = AutoModel.from_config(config, attn_implementation=attention)
    head = nn.Linear(WIDTH, 1)
    nn.init.normal_(head.weight, std=WIDTH**-0.5)  # scores spread by about 0.3
    model = SingleNeuronModel(backbone, head, pooling="last", has_token_types=False)
    model = model.to("cuda", dtype).eval()
    documents = pairs()
    with torch.inference_mode():
        padded = model(**on_gpu(pad(documents, pad_id=0)))
        packed = torch.empty_like(padded)
        for indices, inputs in pair_batches(documents, can_pack=True, max_tokens=MAX_TOKENS, pad_id=0):
            packed[torch.tensor(indices)] = model.batch_scores(on_gpu(inputs))
    assert padded.std() > 4 * tolerance
    torch.testing.assert_close(packed, padded, atol=tolerance, rtol=0)


def on_gpu(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in inputs.items()}
