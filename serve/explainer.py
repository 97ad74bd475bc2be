"""The explainer as a service: texts that an open language model writes, verified as they come."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

from rerank_core.explanation.explain import NUM_ATTEMPTS, conclude, conclude_failure
from rerank_core.explanation.grounding import is_sayable
from rerank_core.explanation.task import MAX_DOCUMENT_CHARS, build_task
from rerank_core.prompting.parse import MAX_ANSWER_CHARS
from rerank_core.records import Generation
from rerank_core.text import words
from serve.deadlines import until
from serve.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from rerank_core.explanation.task import Placement, Task
    from rerank_core.records import Explanation
    from serve.breaker import CircuitBreaker

TOO_LONG = "the query alone is longer than the explainer reads"
NOT_ASKED = "the explainer has failed too often and is left alone for a while"


class Writer(Protocol):
    """A language model that writes JSON of a given schema, piece by piece."""

    def write(self, prompt: str, schema: Mapping[str, Any], *, attempt: int) -> AsyncGenerator[str, None]:
        """Yield the pieces of one text; another `attempt` (from 1) at a prompt samples another one."""
        ...


@dataclass(frozen=True, slots=True)
class Draft:
    """Words of a text that is still being written: each is the document's own, or joins them."""

    text: str


@dataclass(frozen=True, slots=True)
class Explained:
    """A verified explanation; `has_failed` says that the language model gave no text at all."""

    explanation: Explanation
    has_failed: bool


class PromptVocabulary:
    """What a language model's tokenizer.json says, without the libraries that would run the model."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = tuple(token.content for token in added if token.special)

    def num_tokens(self, text: str) -> int:
        """Return the tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


class ExplainerService:
    """Explains placements with a writer, and by the template where it fails or its texts are not grounded."""

    def __init__(  # noqa: PLR0913 - one argument per part
        self,
        writer: Writer | None,
        *,
        name: str,
        special_tokens: Sequence[str],
        num_tokens: Callable[[str], int],
        max_prompt_tokens: int,
        timeout_s: float,
        breaker: CircuitBreaker,
    ) -> None:
        """Take a writer, or None for templates alone; `num_tokens` counts a prompt's tokens."""
        self._writer = writer
        self._name = name
        self._special_tokens = tuple(special_tokens)
        self._num_tokens = num_tokens
        self._max_prompt_tokens = max_prompt_tokens
        self._timeout_s = timeout_s
        self._breaker = breaker

    async def explain(self, placement: Placement) -> AsyncIterator[Draft | Explained]:
        """Yield drafts of a text, and at last the explanation, which counts alone: it may say something else.

        Of a draft each word is checked, up to the first that may not be said; its sentences and citations are
        checked once it is whole. Only an explanation is verified.
        """
        if self._writer is None or not self._breaker.may_call():
            yield Explained(conclude_failure(placement, NOT_ASKED, generator=self._name), True)
            return
        task = self._task(placement)
        if task is None:
            yield Explained(conclude_failure(placement, TOO_LONG, generator=self._name), False)
            return
        try:
            async for found in self._written(placement, task, self._writer):
                yield found
        except (TimeoutError, ApiError) as error:
            self._breaker.failed()
            reason = str(error) or f"no text within {self._timeout_s:g} s"
            yield Explained(conclude_failure(placement, reason, generator=self._name), True)
        else:
            self._breaker.succeeded()

    async def _written(
        self, placement: Placement, task: Task, writer: Writer
    ) -> AsyncIterator[Draft | Explained]:
        deadline = time.monotonic() + self._timeout_s
        generations: list[Generation] = []
        for attempt in range(1, NUM_ATTEMPTS + 1):
            raw, shown = "", 0
            async for piece in until(deadline, writer.write(task.prompt, task.schema, attempt=attempt)):
                raw += piece
                draft = sayable_beginning(raw, placement) if attempt == 1 else ""
                if len(draft) > shown:
                    yield Draft(draft[shown:])
                    shown = len(draft)
                if len(raw) > MAX_ANSWER_CHARS:  # nothing that long was asked for: it is refused as it is
                    break
            generations.append(Generation(raw, self._num_tokens(task.prompt), self._num_tokens(raw)))
            explanation = conclude(placement, generations, generator=self._name)
            if not explanation.fallback:
                break
        yield Explained(explanation, False)

    def _task(self, placement: Placement) -> Task | None:
        """Return what is asked, with as much of the document as fits; None where nothing of it does."""
        chars = min(MAX_DOCUMENT_CHARS, len(placement.document.text))
        while True:
            task = build_task(placement, special_tokens=self._special_tokens, max_document_chars=chars)
            size = self._num_tokens(task.prompt)
            if size <= self._max_prompt_tokens:
                return task
            if chars == 0:
                return None
            chars = chars * self._max_prompt_tokens // (size + 16)


_TEXTS = re.compile(r'"text"\s*:\s*"((?:[^"\\]|\\.)*)("?)')


def sayable_beginning(raw: str, placement: Placement) -> str:
    """Return the beginning of what unfinished JSON says, up to the last whole word that may be said.

    A word is whole once something follows it. What stands between words is a space, or a comma and a space.
    """
    said = ""
    for match in _TEXTS.finditer(raw):
        text = _unescaped(match.group(1))
        is_whole = bool(match.group(2))
        found = words(text) if is_whole else words(text)[:-1]
        for word in found:
            if not is_sayable(word.text, placement.document):
                return said
            comma = "," if text[word.end : word.end + 1] == "," else ""
            said += f"{word.text}{comma} "
        if not is_whole:
            break
    return said


def _unescaped(text: str) -> str:
    """Return what an unfinished JSON string says; a cut escape at its end says nothing yet."""
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return ""
