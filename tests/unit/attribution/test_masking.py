"""What is left of a text when tokens are switched off."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shap.maskers import Text
from transformers import PythonBackend

from rerank_core.attribution.shap_adapter import ShapMasker
from rerank_core.errors import ConfigError

AWKWARD = [
    "Sea ice\nthe  map\t of",
    " warm sea ",
    "CO₂ 🌊 sea, (ice)",
    "[SEP] sea [MASK] [PAD]",
    "日本の海 map",
]


def _masked(masker, text, off=()):
    mask = np.ones(masker.shape(text)[1], dtype=np.bool_)
    mask[list(off)] = False
    return masker(mask, text)[0][0]


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("kind", ["masking_tokenizer", "plain_tokenizer", "byte_tokenizer", "bert_tokenizer"])
def test_with_every_token_on_the_text_is_the_document(kind, text, request):
    masker = ShapMasker(request.getfixturevalue(kind))
    assert _masked(masker, text) == text


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
def test_with_every_token_on_any_text_is_the_document(byte_tokenizer, text):
    assert _masked(ShapMasker(byte_tokenizer), text) == text


def test_spans_lie_on_the_tokens_from_left_to_right(bert_tokenizer):
    spans = ShapMasker(bert_tokenizer).spans(" sea\nice.")
    assert spans == [(0, 0), (1, 4), (5, 8), (8, 9), (9, 9)]


def test_mask_tokens_are_kept_where_the_tokenizer_has_one(masking_tokenizer):
    masker = ShapMasker(masking_tokenizer)
    assert _masked(masker, "the sea ice map", off=[1, 2]) == "the [MASK] [MASK]map"


def test_a_run_of_masked_tokens_is_one_gap_where_it_has_none(plain_tokenizer):
    masker = ShapMasker(plain_tokenizer)
    assert _masked(masker, "the sea ice map", off=[1, 2]) == "the ...map"
    assert _masked(masker, "the sea ice map", off=[0, 1, 2, 3]) == "..."
    assert _masked(masker, "the sea ice map", off=[0, 2]) == "...sea ...map"


def test_a_masked_sub_word_leaves_the_rest_of_its_word(bert_tokenizer):
    masker = ShapMasker(bert_tokenizer)
    text = "hydrometeorology map"
    pieces = masker.spans(text)
    assert len(pieces) > 4
    first, last = pieces[1], pieces[-3]
    assert _masked(masker, text, off=[1]) == "[MASK]" + text[first[1] :]
    assert _masked(masker, text, off=[len(pieces) - 3]) == f"{text[: last[0]]} [MASK]map"


def test_special_tokens_are_never_masked(bert_tokenizer):
    masker = ShapMasker(bert_tokenizer)
    assert _masked(masker, "sea", off=[0, 2]) == "sea"
    assert _masked(masker, "sea", off=[0, 1, 2]) == "[MASK]"


def test_a_special_token_written_in_a_document_is_text_like_any_other(bert_tokenizer):
    masker = ShapMasker(bert_tokenizer)
    spans = masker.spans("[SEP] sea")
    assert spans[1] == (0, 1)
    assert "SEP" not in _masked(masker, "[SEP] sea", off=range(len(spans)))


def test_tokens_that_share_a_character_are_one_player(byte_tokenizer):
    masker = ShapMasker(byte_tokenizer)
    assert masker.spans("a₂b") == [(0, 1), (1, 2), (2, 3)]
    assert _masked(masker, "a₂b", off=[1]) == "a ...b"


def test_an_empty_text_has_no_player_but_special_tokens(byte_tokenizer, bert_tokenizer):
    assert ShapMasker(byte_tokenizer).spans("") == []
    assert ShapMasker(bert_tokenizer).spans("") == [(0, 0), (0, 0)]


@pytest.mark.parametrize("kind", ["masking_tokenizer", "plain_tokenizer", "bert_tokenizer"])
def test_on_plain_texts_it_masks_and_groups_as_shap_does(kind, request):
    tokenizer = request.getfixturevalue(kind)
    ours, theirs = ShapMasker(tokenizer), Text(tokenizer)
    text = "the sea ice map, (warm sea) and earthquakes."
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random(ours.shape(text)[1]) < 0.5
        assert ours(mask, text)[0][0] == theirs(mask, text)[0][0]
    assert ours.shape(text) == theirs.shape(text)
    np.testing.assert_array_equal(ours.clustering(text), theirs.clustering(text))


def test_a_tokenizer_without_offsets_is_refused():
    class SlowTokenizer(PythonBackend):
        """Splits in Python, as tokenizers without a tokenizer.json do."""

        @property
        def vocab_size(self):
            return 0

        def get_vocab(self):
            return {}

    with pytest.raises(ConfigError, match="SlowTokenizer gives no character offsets"):
        ShapMasker(SlowTokenizer())


def test_a_token_without_characters_inside_a_text_is_no_player():
    class WithEmptyToken:
        is_fast = True
        mask_token = None
        sep_token = None

        def __call__(self, text, **kwargs):
            if not text:
                return {"input_ids": [], "offset_mapping": []}
            if text == "a":
                return {"special_tokens_mask": [0]}
            return {"input_ids": [5, 6, 7], "offset_mapping": [(0, 3), (4, 4), (4, 7)]}

    tokenizer: Any = WithEmptyToken()
    masker = ShapMasker(tokenizer)
    assert masker.spans("sea ice") == [(0, 3), (4, 7)]
    assert _masked(masker, "sea ice", off=[1]) == "sea ..."
