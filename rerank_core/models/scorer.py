"""One output neuron on a language model, as a scorer of (query, document)."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rerank_core.errors import ConfigError
from rerank_core.models.chunks import chunk_spans
from rerank_core.models.prefix_scorer import can_share_prefix, pack, packed_mask, prefix_rows, row_length
from rerank_core.records import Document

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

    from rerank_core.models.chunks import Span
    from rerank_core.records import Query

HeadKind = Literal["linear", "yes_no"]
Pooling = Literal["last", "product"]
LongDocuments = Literal["truncate", "max_chunk"]
"""What becomes of a document that is too long: its end is cut, or it has the score of its best chunk."""

CHUNK_SPARE = 16
"""One token in so many of a document's room stays free in a chunk: masked, it may take some more."""

FEW_TEXTS = 8
"""Fewer words than these are tokenised before the tokenizer's threads are awake (on two cores)."""

PAIR_TEMPLATE = "{cls}{query}{sep}{document}{sep}"
TEXT_TEMPLATE = "Query: {query}\nDocument: {document}{eos}"
YES_NO_TEMPLATE = "Query: {query}\nDocument: {document}\nDoes the document answer the query? Answer:"


SPECIAL_NAMES = ("cls", "sep", "bos", "eos")
"""The tokenizer's special tokens that a template may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """How a pair becomes one sequence of tokens: the query first, the document last, then the template's end.

    `template` holds `{query}` and `{document}` once each, in that order, and may hold the tokenizer's special
    tokens as `{cls}`, `{sep}`, `{bos}` and `{eos}`. What stands in a query or a document is read as letters,
    never as a special token, with one exception: where the tokenizer has a mask token (`[MASK]`, `<mask>`),
    its literal text in a query or a document is read as the mask, because attribution hides words that way.

    Raises:
        ConfigError: the template is not of this form, or a length is below 1.
    """

    template: str
    max_length: int  # tokens of the whole sequence
    max_query_length: int  # tokens of the query

    def __post_init__(self) -> None:
        for name, value in (("max_length", self.max_length), ("max_query_length", self.max_query_length)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}; raise max_length")
        try:
            parts = list(Formatter().parse(self.template))
        except ValueError as error:
            raise ConfigError(f"template {self.template!r}: {error}; write {{{{ for a brace") from error
        names = [name for _, name, _, _ in parts if name is not None]
        is_plain = all(not form and not conversion for _, _, form, conversion in parts)
        texts = [name for name in names if name not in SPECIAL_NAMES]
        if not is_plain or texts != ["query", "document"]:
            raise ConfigError(
                f"template {self.template!r} must hold {{query}} and {{document}} once each, in that order,"
                f" and besides them only {', '.join(f'{{{name}}}' for name in SPECIAL_NAMES)}"
            )


@dataclass(frozen=True, slots=True)
class EncodedHead:
    """A query as tokens, with what the template puts before the document."""

    input_ids: tuple[int, ...]
    is_truncated: bool  # the end of the query was cut


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as tokens; `document_start` and `document_end` bound the document's tokens."""

    input_ids: tuple[int, ...]
    document_start: int
    document_end: int
    is_truncated: bool  # the end of the document, or of the query, was cut


class PairEncoder:
    """Turns (query, document) into token ids; `end_ids` are those that stand behind every document."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> None:
        self.tokenizer = tokenizer
        self.format = prompt_format
        self._before, self._between, self.end_ids = (
            tokenizer.encode(text, add_special_tokens=False) for text in self._fixed_texts()
        )
        fixed = len(self._before) + len(self._between) + len(self.end_ids)
        if fixed + prompt_format.max_query_length >= prompt_format.max_length:
            raise ConfigError(
                f"max_length {prompt_format.max_length} leaves no room for a document after"
                f" {prompt_format.max_query_length} tokens of the query and {fixed} of the template;"
                " raise max_length"
            )

    def encode(self, query: Query, document: Document) -> EncodedPair:
        """Return the tokens of a pair; a document that is too long is cut at its end."""
        return self.joined(self.head(query), self.text_ids(document.content))

    def head(self, query: Query) -> EncodedHead:
        """Return the tokens that stand before any document of a query."""
        query_ids = self.text_ids(query.text)
        limit = self.format.max_query_length
        return EncodedHead((*self._before, *query_ids[:limit], *self._between), len(query_ids) > limit)

    def room(self, head: EncodedHead) -> int:
        """Return how many tokens of a document fit behind a query."""
        return self.format.max_length - len(head.input_ids) - len(self.end_ids)

    def joined(self, head: EncodedHead, document_ids: Sequence[int]) -> EncodedPair:
        """Return the tokens of a pair from those of its query and its document, which is cut to fit."""
        room = self.room(head)
        return EncodedPair(
            input_ids=(*head.input_ids, *document_ids[:room], *self.end_ids),
            document_start=len(head.input_ids),
            document_end=len(head.input_ids) + min(room, len(document_ids)),
            is_truncated=head.is_truncated or len(document_ids) > room,
        )

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a query's or a document's text."""
        return [token_id for token_id, _ in self._text_tokens(text)]

    def batch_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of some texts, as `text_ids` does, sooner than one by one."""
        mask = self.tokenizer.mask_token
        plain = [text for text in texts if not mask or mask not in text]
        # A call of `tokenizer` sets these anew itself, and does more than some words are worth.
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        if len(plain) < FEW_TEXTS:
            encoded = [backend.encode(text, add_special_tokens=False) for text in plain]
        else:
            encoded = backend.encode_batch_fast(plain, add_special_tokens=False)
        found = iter(encoded)
        return [next(found).ids if not mask or mask not in text else self.text_ids(text) for text in texts]

    def visible_content(self, query: Query, document: Document) -> str:
        """Return the part of the document's content that fits next to this query."""
        pair = self.encode(query, document)
        return self._beginning(document.content, num_tokens=pair.document_end - pair.document_start)

    def chunks(self, query: Query, document: Document) -> list[Span]:
        """Return the characters of the parts of the content that each fit next to this query."""
        content = document.content
        ends = [end for _, end in self._text_tokens(content)]
        room = self.room(self.head(query))
        if len(ends) <= room:
            return [(0, len(content))]
        return chunk_spans(content, ends, room=max(room - room // CHUNK_SPARE, 1))

    def visible_query(self, query: Query) -> str:
        """Return the part of the query's text that the model reads."""
        return self._beginning(query.text, num_tokens=self.format.max_query_length)

    def _beginning(self, text: str, *, num_tokens: int) -> str:
        ends = [end for _, end in self._text_tokens(text)]
        return text if num_tokens >= len(ends) else text[: ends[num_tokens - 1]]

    def _fixed_texts(self) -> list[str]:
        """Return what the template holds before the query, between the two texts, and after the document."""
        special = {name: getattr(self.tokenizer, f"{name}_token") or "" for name in SPECIAL_NAMES}
        texts = [""]
        for literal, name, _, _ in Formatter().parse(self.format.template):
            texts[-1] += literal
            if name in ("query", "document"):
                texts.append("")
            elif name is not None:
                texts[-1] += special[name]
        return texts

    def _text_tokens(self, text: str) -> list[tuple[int, int]]:
        """Return (id, end character) of a text's tokens.

        Special tokens in a text are read letter by letter, except the mask that attribution puts there.
        """
        mask = self.tokenizer.mask_token
        pieces = text.split(mask) if mask else [text]
        tokens = self._plain_tokens(pieces[0], shift=0)
        place = len(pieces[0])
        for piece in pieces[1:]:
            place += len(mask)
            tokens.append((self.tokenizer.mask_token_id, place))
            tokens += self._plain_tokens(piece, shift=place)
            place += len(piece)
        return tokens

    def _plain_tokens(self, text: str, *, shift: int) -> list[tuple[int, int]]:
        found = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            (token_id, shift + end)
            for token_id, (_, end) in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]


class SingleNeuronModel(nn.Module):
    """A language model whose output layer is one neuron: `score = w · h + b` on one pooled hidden state `h`.

    "last" pools the hidden state of the last non-pad token, which in a causal language model has seen
    everything. "product" is for encoders: the mean state of the query's tokens times that of the document's,
    element by element, each of unit length, after full attention between the two (ADR 0005).
    """

    def __init__(
        self, backbone: PreTrainedModel, head: nn.Linear, *, pooling: Pooling, has_token_types: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling = pooling
        self.has_token_types = has_token_types
        accepted = inspect.signature(backbone.forward).parameters
        self._has_positions = "position_ids" in accepted
        self._first_position = first_position(backbone)
        self._settings = {"use_cache": False} if "use_cache" in accepted else {}
        self.can_pack = pooling == "last" and can_share_prefix(backbone)

    @property
    def config(self) -> Any:
        """The backbone's configuration; DeepSpeed's integration reads its hidden size."""
        return self.backbone.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor) -> Tensor:
        """Return one score per row, (rows,), from right- or left-padded inputs, each (rows, length)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._has_positions:  # as if nothing were padded on the left
            inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0) + self._first_position
        if self.has_token_types:
            inputs["token_type_ids"] = segment_ids
        hidden = self.backbone(**inputs, **self._settings).last_hidden_state  # (rows, length, width)
        if self.pooling == "last":
            pooled = last_state(hidden, attention_mask)
        else:
            of_query = unit_mean(hidden, attention_mask * (1 - segment_ids))
            pooled = of_query * unit_mean(hidden, attention_mask * segment_ids)
        scores: Tensor = self.head(pooled).squeeze(-1)  # (rows,)
        return scores

    def forward_packed(
        self, *, input_ids: Tensor, position_ids: Tensor, block_ids: Tensor, last_tokens: Tensor
    ) -> Tensor:
        """Return one score per document, (documents,), from `pack`'s inputs; only where `can_pack`."""
        hidden = self.backbone(
            input_ids=input_ids,
            position_ids=position_ids + self._first_position,
            attention_mask=packed_mask(block_ids, dtype=self.backbone.dtype),
            **self._settings,
        ).last_hidden_state  # (rows, length, width)
        scores: Tensor = self.head(hidden.flatten(0, 1)[last_tokens]).squeeze(-1)  # (documents,)
        return scores

    def forward_cached(
        self, *, input_ids: Tensor, position_ids: Tensor, may_look: Tensor, cache: Cache
    ) -> Tensor:
        """Return the score at each row's last token, (rows,); only where `can_pack`.

        `input_ids` and `position_ids` are (rows, new), left-padded; `cache` knows the tokens before them, and
        `may_look` says which of all of a row's tokens each new one sees, (rows, new, length).
        """
        mask = torch.zeros(may_look.shape, dtype=self.backbone.dtype, device=may_look.device)
        mask.masked_fill_(~may_look, torch.finfo(mask.dtype).min)
        hidden = self.backbone(
            input_ids=input_ids,
            position_ids=position_ids + self._first_position,
            attention_mask=mask.unsqueeze(1),
            past_key_values=cache,
            **self._settings,
        ).last_hidden_state  # (rows, new, width)
        scores: Tensor = self.head(hidden[:, -1]).squeeze(-1)  # (rows,)
        return scores

    def batch_scores(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the scores of one batch that `pair_batches` has made for this model, (pairs,)."""
        scores: Tensor = self.forward_packed(**inputs) if self.can_pack else self(**inputs)
        return scores


def _part(document: Document, span: Span) -> Document:
    return Document(document.doc_id, document.content[slice(*span)])


def best_reading(readings: Sequence[Reading]) -> Reading:
    """Return the reading with the highest score, the first of equals; one whose score is no number wins."""
    return max(readings, key=lambda reading: (math.isnan(reading.score), reading.score))


def first_position(backbone: nn.Module) -> int:
    """Return the position of a sequence's first token.

    It is 0, and in RoBERTa's family, whose position embedding keeps rows for padding, the row behind those.
    """
    for name, module in backbone.named_modules():
        is_positions = name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding)
        if is_positions and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0


def last_state(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the state of each row's last non-pad token, (rows, width), from (rows, length, width)."""
    places = torch.arange(mask.shape[1], device=hidden.device)  # (length,)
    index = places.masked_fill(mask == 0, -1).max(dim=1).values  # (rows,)
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def unit_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each row's masked-in states, scaled to length 1, (rows, width)."""
    total = (hidden * mask.unsqueeze(-1).to(hidden.dtype)).sum(dim=1)  # the length of the sum does not matter
    return nn.functional.normalize(total, dim=-1)


def pad(pairs: Sequence[EncodedPair], *, pad_id: int) -> dict[str, Tensor]:
    """Return the model's inputs for some pairs, padded on the right, each (pairs, longest length).

    Segment 0 is the query with what stands before and behind it, segment 1 the document with the template's
    end.
    """
    length = max(len(pair.input_ids) for pair in pairs)
    ids = torch.full((len(pairs), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(pairs), length), dtype=torch.long)
    segments = torch.zeros((len(pairs), length), dtype=torch.long)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair.input_ids)] = torch.tensor(pair.input_ids)
        mask[row, : len(pair.input_ids)] = 1
        segments[row, pair.document_start : len(pair.input_ids)] = 1
    return {"input_ids": ids, "attention_mask": mask, "segment_ids": segments}


def length_batches(lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest first, of at most `max_tokens` padded tokens (or one row) each."""
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = max(longest, lengths[index])
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch


def pair_batches(
    pairs: Sequence[EncodedPair], *, can_pack: bool, max_tokens: int, pad_id: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield the pairs in batches: the indices of a batch's pairs, and the model's inputs in that order.

    A batch has at most `max_tokens` padded tokens, or one row. With `can_pack` a row holds pairs behind the
    prefix that they share, else a row is a pair.
    """
    rows = prefix_rows(pairs, max_tokens=max_tokens) if can_pack else [[index] for index in range(len(pairs))]
    listed = [[pairs[index] for index in row] for row in rows]
    for chosen in length_batches([row_length(row) for row in listed], max_tokens=max_tokens):
        indices = [index for row in chosen for index in rows[row]]
        if can_pack:
            yield indices, pack([listed[row] for row in chosen], pad_id=pad_id)
        else:
            yield indices, pad([pairs[index] for index in indices], pad_id=pad_id)


@dataclass(frozen=True, slots=True)
class Reading:
    """A part of a document's content that a scorer has read next to a query, and its score."""

    score: float
    span: Span  # characters of the content
    is_truncated: bool  # the end of the part, or of the query, was cut


class LanguageModelScorer:
    """A `Scorer` over a single-neuron model; scores are logits and depend on their own pair alone.

    With `long_documents` "max_chunk" a document that does not fit is read in chunks (`PairEncoder.chunks`),
    each scored as a document of its own, and has the score of the best one; training never does this.
    """

    def __init__(
        self,
        model: SingleNeuronModel,
        encoder: PairEncoder,
        *,
        digest: str,
        max_tokens_per_batch: int = 8192,
        long_documents: LongDocuments = "truncate",
    ) -> None:
        self.model = model.eval()
        self.encoder = encoder
        self.digest = digest
        self.max_tokens_per_batch = max_tokens_per_batch
        self.long_documents: LongDocuments = long_documents

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model."""
        return self.encoder.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens of query and document together that the model reads."""
        return self.encoder.format.max_length

    def score(self, query: Query, documents: Sequence[Document]) -> list[float]:
        """Return one score per document, in the order of `documents`."""
        return self.score_pairs([(query, document) for document in documents])

    def score_pairs(self, pairs: Sequence[tuple[Query, Document]]) -> list[float]:
        """Return one score per pair, in the order of `pairs`."""
        return [best_reading(readings).score for readings in self.readings(pairs)]

    def readings(self, pairs: Sequence[tuple[Query, Document]]) -> list[list[Reading]]:
        """Return what is read of each pair's document, from left to right: one part, or all its chunks."""
        parts = [self._parts(query, document) for query, document in pairs]
        scores = iter(self.score_encoded([pair for own in parts for _, pair in own]))
        return [[Reading(next(scores), span, pair.is_truncated) for span, pair in own] for own in parts]

    def _parts(self, query: Query, document: Document) -> list[tuple[Span, EncodedPair]]:
        pair = self.encoder.encode(query, document)
        is_whole = not pair.is_truncated or self.long_documents == "truncate"
        spans = [] if is_whole else self.encoder.chunks(query, document)
        if not spans:
            return [((0, len(document.content)), pair)]
        return [(span, self.encoder.encode(query, _part(document, span))) for span in spans]

    def score_encoded(self, pairs: Sequence[EncodedPair]) -> list[float]:
        """Return one score per encoded pair, in the order of `pairs`.

        Pairs with the same query share the work on it where the model can be packed.
        """
        scores = [0.0] * len(pairs)
        for indices, inputs in pair_batches(
            pairs,
            can_pack=self.model.can_pack,
            max_tokens=self.max_tokens_per_batch,
            pad_id=self.tokenizer.pad_token_id,
        ):
            for index, score in zip(indices, self._forward(inputs), strict=True):
                scores[index] = score
        return scores

    def visible_span(self, query: Query, document: Document) -> Span:
        """Return the characters of the document's content whose score is the document's.

        They are all that the model reads next to this query, or the chunk with the highest score.
        """
        spans = self.visible_spans(query, document)
        if len(spans) == 1:
            return spans[0]
        readings = self.readings([(query, document)])[0]
        return spans[readings.index(best_reading(readings))]

    def visible_spans(self, query: Query, document: Document) -> list[Span]:
        """Return the characters of each part of the content that the model reads next to this query.

        They are one part, or all chunks, from left to right; no model is asked.
        """
        return [
            (span[0], span[0] + len(self.encoder.visible_content(query, _part(document, span))))
            for span, _ in self._parts(query, document)
        ]

    def visible_query(self, query: Query) -> str:
        """Return the part of the query's text that the model reads."""
        return self.encoder.visible_query(query)

    @torch.inference_mode()
    def _forward(self, inputs: Mapping[str, Tensor]) -> list[float]:
        device = self.model.head.weight.device
        scores: list[float] = (
            self.model.batch_scores({name: tensor.to(device) for name, tensor in inputs.items()})
            .cpu()
            .double()
            .tolist()
        )
        return scores
