"""The attributor of a method, for a language-model scorer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from rerank_core.attribution.attributor import SearchAttributor
from rerank_core.attribution.estimators import ExactShapley, PartitionOwen, PrunedOwen
from rerank_core.errors import ConfigError
from rerank_core.models.near_copies import NearCopies

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_core.attribution.contract import TextScorer
    from rerank_core.attribution.estimators import Estimator
    from rerank_core.attribution.leaves import Leaf
    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.protocols import Attributor
    from rerank_core.records import Query

Method = Literal["pruned", "partition", "exact", "shap"]
"""`pruned`: Owen values, fewest evaluations for an error. `partition`: the coalitions of shap's Partition
explainer, cheaper. `exact`: Shapley values by enumeration. `shap`: that explainer itself."""


def build_attributor(  # noqa: PLR0913 - what decides the values, and who may end the work
    scorer: LanguageModelScorer,
    method: Method,
    *,
    max_evals: int,
    max_error: float = 0.0,
    leaf: Leaf = "token",
    before_call: Callable[[], None] | None = None,
) -> Attributor:
    """Return an attributor for a model in float32 or float64.

    `max_error` is for `pruned` alone, `max_evals` for all but `exact`. `before_call` is called before masked
    texts are scored, again and again: what it raises ends the attribution. `shap` does not call it.

    Raises:
        ConfigError: there is no such method, a setting is out of range, or the method does not know it.
    """
    if method not in get_args(Method):
        raise ConfigError(f"no method is called {method!r}; take one of {', '.join(get_args(Method))}")
    if max_error > 0 and method != "pruned":
        raise ConfigError(f"{method} knows no bound on its error; leave max_error at 0, or take pruned")
    if method == "shap":
        from rerank_core.attribution.shap_adapter import ShapAttributor  # shap takes seconds to load

        if leaf != "token":
            raise ConfigError(f"shap knows no {leaf} leaves; take leaf `token`, or another method")
        return ShapAttributor(scorer, scorer.tokenizer, max_evals=max_evals)
    return SearchAttributor(
        scorer,
        scorer.tokenizer,
        _estimator(method, max_evals=max_evals, max_error=max_error),
        leaf=leaf,
        open_texts=partial(_open_texts, scorer, before_call),
    )


def _open_texts(scorer: LanguageModelScorer, before_call: Callable[[], None] | None) -> TextScorer:
    copies = NearCopies(scorer)
    return copies if before_call is None else _Watched(copies, before_call)


class _Watched:
    """A `TextScorer` that lets somebody end the work before each of its calls."""

    def __init__(self, texts: TextScorer, before_call: Callable[[], None]) -> None:
        self._texts = texts
        self._before_call = before_call

    def score_texts(self, texts: Sequence[tuple[Query, str]]) -> list[float]:
        self._before_call()
        return self._texts.score_texts(texts)


def _estimator(
    method: Literal["pruned", "partition", "exact"], *, max_evals: int, max_error: float
) -> Estimator:
    if method == "pruned":
        return PrunedOwen(max_evals, max_error)
    if method == "partition":
        return PartitionOwen(max_evals)
    return ExactShapley()
