"""Data, retrieval, ranking and evaluation, and the jobs on them, work without torch and Ray."""

from __future__ import annotations

import subprocess
import sys

LIGHT = (
    "rerank_core.data.loading",
    "rerank_core.retrieval.bm25",
    "rerank_core.ranking.pointwise",
    "rerank_core.evaluation.comparison",
    "jobs.prepare",
    "jobs.evaluate",
)


def test_the_light_modules_load_neither_torch_nor_ray() -> None:
    program = f"import sys, {', '.join(LIGHT)}; sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
