"""What we know: the pure core of Whyrank, and its public names.

Importing it loads neither torch nor any runtime: a name that needs a library loads it when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rerank_core.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    JobError,
    OutputConflictError,
    ResourceError,
    WhyrankError,
)
from rerank_core.protocols import Attributor, Retriever, Scorer, TextGenerator
from rerank_core.records import (
    Attribution,
    Candidate,
    Collection,
    Document,
    Evidence,
    EvidenceWord,
    Explanation,
    Generation,
    GradedCandidate,
    PreferencePair,
    Qrels,
    Query,
    Ranking,
    Run,
    Unit,
)

if TYPE_CHECKING:
    from rerank_core.attribution.attributor import SearchAttributor
    from rerank_core.attribution.build import build_attributor
    from rerank_core.attribution.shap_adapter import ShapAttributor
    from rerank_core.data.loading import load_collection
    from rerank_core.data.preferences import preference_pairs
    from rerank_core.evaluation.ranking_metrics import evaluate
    from rerank_core.explanation.evidence import select_evidence
    from rerank_core.explanation.explain import Explainer
    from rerank_core.models.artefact import load_artefact
    from rerank_core.ranking.contract import rank
    from rerank_core.ranking.fusion import fuse
    from rerank_core.ranking.pointwise import rerank
    from rerank_core.retrieval.bm25 import Bm25Retriever

__version__ = "0.1.0"

__all__ = [
    "ArtefactError",
    "Attribution",
    "Attributor",
    "Bm25Retriever",
    "Candidate",
    "Collection",
    "ConfigError",
    "DataError",
    "Document",
    "Evidence",
    "EvidenceWord",
    "Explainer",
    "Explanation",
    "Generation",
    "GradedCandidate",
    "JobError",
    "OutputConflictError",
    "PreferencePair",
    "Qrels",
    "Query",
    "Ranking",
    "ResourceError",
    "Retriever",
    "Run",
    "Scorer",
    "SearchAttributor",
    "ShapAttributor",
    "TextGenerator",
    "Unit",
    "WhyrankError",
    "build_attributor",
    "evaluate",
    "fuse",
    "load_artefact",
    "load_collection",
    "preference_pairs",
    "rank",
    "rerank",
    "select_evidence",
]

_MODULE_BY_NAME = {
    "Bm25Retriever": "rerank_core.retrieval.bm25",
    "Explainer": "rerank_core.explanation.explain",
    "SearchAttributor": "rerank_core.attribution.attributor",
    "ShapAttributor": "rerank_core.attribution.shap_adapter",
    "build_attributor": "rerank_core.attribution.build",
    "evaluate": "rerank_core.evaluation.ranking_metrics",
    "fuse": "rerank_core.ranking.fusion",
    "load_artefact": "rerank_core.models.artefact",
    "load_collection": "rerank_core.data.loading",
    "preference_pairs": "rerank_core.data.preferences",
    "rank": "rerank_core.ranking.contract",
    "rerank": "rerank_core.ranking.pointwise",
    "select_evidence": "rerank_core.explanation.evidence",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
