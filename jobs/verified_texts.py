"""Texts asked of an engine, verified, and asked for once more where they are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.first_texts import asked
from jobs.generation import Failure
from rerank_core.errors import JobError
from rerank_core.explanation.explain import NUM_ATTEMPTS, conclude, conclude_failure
from rerank_core.records import Generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from jobs.first_texts import FirstTexts
    from jobs.generation import Request
    from rerank_core.explanation.task import Placement
    from rerank_core.records import Explanation

    Answers: TypeAlias = Iterator[tuple[int, Generation | Failure]]
    """(index, answer) in whatever order they end, each index once."""


def verified(
    requests: Sequence[Request],
    placements: Sequence[Placement],
    *,
    ask: Callable[[Sequence[Request], int], Answers],
    first_texts: FirstTexts,
    generator: str,
) -> Iterator[tuple[int, Explanation]]:
    """Yield (index, explanation) for every request, each once; refused texts are asked for once more.

    `placements[request.index]` is what a request asks about; `ask(requests, attempt)` yields their answers.
    Refused texts come last: an engine is started for them only once the others are done. What `first_texts`
    holds from an interrupted execution is not asked for again.
    """
    written: dict[int, tuple[Generation, ...]] = {}  # by index, of what is not concluded yet
    for attempt in range(1, NUM_ATTEMPTS + 1):
        if attempt == 1:
            answers = _first_answers(requests, placements, ask=ask, first_texts=first_texts)
        else:
            pending = [request for request in requests if request.index in written]
            answers = ask(pending, attempt) if pending else iter(())
        for index, answer in answers:
            texts = written.pop(index, ())
            if isinstance(answer, Generation):
                texts = (*texts, answer)
            elif not texts:
                yield index, conclude_failure(placements[index], answer.reason, generator=generator)
                continue
            explanation = conclude(placements[index], texts, generator=generator)
            if explanation.fallback and attempt < NUM_ATTEMPTS:
                written[index] = texts
            else:
                yield index, explanation


def _first_answers(
    requests: Sequence[Request],
    placements: Sequence[Placement],
    *,
    ask: Callable[[Sequence[Request], int], Answers],
    first_texts: FirstTexts,
) -> Answers:
    kept = first_texts.read()
    known = {r.index: asked(placements[r.index]) for r in requests if asked(placements[r.index]) in kept}
    for index, key in known.items():
        yield index, kept[key]
    pending = [request for request in requests if request.index not in known]
    for index, answer in ask(pending, 1) if pending else ():
        if isinstance(answer, Generation):
            first_texts.keep(placements[index], answer)
        yield index, answer


def once_answered(answers: Answers) -> Answers:
    """Yield all answers in their order, the first failures only once a request was answered.

    Raises:
        JobError: no request was answered.
    """
    failures: list[tuple[int, Failure]] = []
    for index, answer in answers:
        if isinstance(answer, Failure):
            failures.append((index, answer))
            continue
        yield from failures
        yield index, answer
        yield from answers
        return
    if failures:
        reason = failures[0][1].reason
        raise JobError(
            f"the engine answered none of {len(failures)} requests, so nothing is written; the first reason:"
            f" {reason}; mend the cause and run the same command again, or choose another --model or"
            " --max-model-tokens with another --output"
        )
