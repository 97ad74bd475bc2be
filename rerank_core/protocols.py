"""The seams: what a runtime, a model or a test may put in place of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rerank_core.records import Attribution, Candidate, Document, Generation, Query


class Retriever(Protocol):
    """A first stage over one corpus."""

    def retrieve(self, query: Query, *, k: int) -> list[Candidate]:
        """Return the best `k` documents (all of a smaller corpus), best first, ranks from 1."""
        ...


class Scorer(Protocol):
    """One number per (query, document): a logit, unbounded, higher is better."""

    def score(self, query: Query, documents: Sequence[Document]) -> list[float]:
        """Return one score per document, in their order; a score depends on its own pair alone."""
        ...


class Attributor(Protocol):
    """A value per word of each document for its score."""

    def attribute(self, query: Query, documents: Sequence[Document], *, seed: int) -> list[Attribution]:
        """Return one attribution per document, in the order of `documents`."""
        ...

    def attribute_query(self, query: Query, documents: Sequence[Document], *, seed: int) -> list[Attribution]:
        """Return the values of the query's words for each document's score, in the order of `documents`.

        Raises:
            ConfigError: the method attributes words of documents alone.
        """
        ...


class TextGenerator(Protocol):
    """A language model that writes JSON of a given schema."""

    def generate(
        self, prompts: Sequence[str], schemas: Sequence[Mapping[str, Any]], *, attempt: int = 1
    ) -> list[Generation]:
        """Return one generation per prompt; `schemas[i]` is the JSON schema that text i has to follow.

        Another `attempt` (from 1) at the same prompt samples another text.
        """
        ...


class Embedder(Protocol):
    """A vector per token of a text, read in its context."""

    def embed(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return one array per text, (tokens, width), in their order; a text's vectors depend on it alone."""
        ...
