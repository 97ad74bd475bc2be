"""A comparison of methods in, one Markdown page with its figures out."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Final

from rerank_core.evaluation.method_pictures import (
    MethodCost,
    draw_accuracy_against_cost,
    draw_learning_curves,
    draw_reliability,
)
from rerank_core.evaluation.pictures import PictureStyle, png_of
from rerank_core.evaluation.preference_metrics import PAIRWISE_ACCURACY, PAIRWISE_LOSS, TOP1_ACCURACY
from rerank_core.evaluation.ranking_metrics import GAIN, NDCG_BURGES
from rerank_core.evaluation.text_metrics import TEXT_METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.figure import Figure

    from rerank_core.evaluation.method_comparison import Comparison, MethodRow, MethodTest, Share
    from rerank_core.evaluation.significance import Interval

COMPARISON_PAGE: Final = "comparison.md"
PREFERENCE_METRICS: Final = (PAIRWISE_LOSS, PAIRWISE_ACCURACY, TOP1_ACCURACY)
RANKING_METRICS: Final = (NDCG_BURGES, "ndcg_burges@5", *TEXT_METRICS)
TESTED_METRICS: Final = (NDCG_BURGES, PAIRWISE_ACCURACY)
LEVEL: Final = 0.05

LABELS: Final = {
    PAIRWISE_LOSS: "pairwise loss",
    PAIRWISE_ACCURACY: "pairwise accuracy",
    TOP1_ACCURACY: "top-1 accuracy",
    NDCG_BURGES: "NDCG@10",
    "ndcg_burges@5": "NDCG@5",
    "cosine": "cosine",
    "bert_score": "BERTScore",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
}
"""What a metric is called on the page."""


def draw_comparison(comparison: Comparison) -> dict[str, bytes]:
    """Return the figures of a comparison as PNG files by name; learning and reliability once per model."""
    style = PictureStyle()
    figures: dict[str, Figure] = {}
    for model in comparison.models:
        if comparison.curves.get(model):
            figures[_figure("learning", model)] = draw_learning_curves(
                comparison.curves[model],
                style,
                step_label=f"epochs ({model})",
                metric_label="NDCG on dev queries, mean over folds",
            )
        bins = {
            found.method: found.bins
            for found in comparison.reliability
            if found.model == model and found.bins
        }
        if bins:
            figures[_figure("reliability", model)] = draw_reliability(bins, style)
    figures["cost.png"] = draw_accuracy_against_cost(
        _costs(comparison),
        style,
        cost_label="seconds of training per fold and seed, with the stages that a method builds on",
        accuracy_label="pairwise accuracy on test queries",
    )
    return {name: png_of(figure) for name, figure in figures.items()}


def _figure(kind: str, model: str) -> str:
    return f"{kind}-{model.replace(':', '-')}.png"


def _costs(comparison: Comparison) -> list[MethodCost]:
    return [
        MethodCost(f"{row.model} {row.method}", seconds, row.values[PAIRWISE_ACCURACY])
        for row in comparison.rows
        if (seconds := comparison.seconds.get(row.model, {}).get(row.method)) is not None
    ]


def render_comparison(comparison: Comparison, *, pictures: Iterable[str]) -> str:
    """Return the page as Markdown: both tables, the tests, calibration, cost, and how to read them.

    `pictures` are the names of the figures, which lie beside the page.
    """
    parts = [
        f"# Methods compared on {comparison.collection}",
        _introduction(comparison),
        "## Table 1: held-out preferences",
        _metric_table(comparison, PREFERENCE_METRICS),
        _about_preferences(comparison),
        "## Table 2: rankings, and the texts at the same rank",
        _metric_table(comparison, RANKING_METRICS),
        _about_rankings(comparison),
        "## Differences",
        _about_tests(comparison),
        *(_test_table(comparison, metric) for metric in TESTED_METRICS),
        "## Calibration",
        _calibration_table(comparison),
        "## Cost",
        _cost_table(comparison),
        "## Figures",
        *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(comparison: Comparison) -> str:
    folds = f"{comparison.num_folds}-fold by query" if comparison.num_folds > 1 else "one split by query"
    seeds = ", ".join(map(str, comparison.seeds))
    parts = [
        f"{comparison.num_queries} test queries ({folds}), {comparison.num_candidates:.1f} candidates each on"
        f" average; seeds {seeds}. A query is ranked by the models of the fold that tests it, and its value"
        " is the mean over the seeds. In brackets the 95 % interval over queries"
        f" ({comparison.num_samples:,} bootstrap samples); behind ± the standard deviation over seeds of the"
        " mean.",
        _about_epochs(comparison),
        f"{_share(comparison.truncated_in_training)} training documents (over all stages) and"
        f" {_share(comparison.truncated_in_test)} ranked pairs were read in part, as they are longer than the"
        " scorer reads.",
    ]
    if comparison.num_quarantined:
        parts.append(
            f"{comparison.num_quarantined} times a query got no finite score: it stands in the order of the"
            " first stage, its candidates with equal scores."
        )
    return " ".join(parts)


def _about_epochs(comparison: Comparison) -> str:
    if not comparison.patience:
        return "Every stage was trained for all its epochs."
    text = "The epoch of each stage was chosen on the fold's dev queries, which that fold does not test."
    if comparison.num_folds_without_choice:
        text += (
            f" In {comparison.num_folds_without_choice} of {comparison.num_folds} folds no dev query has a"
            " relevant candidate: there the last epoch was taken."
        )
    return text


def _share(share: Share) -> str:
    return f"{share.num:,} of {share.total:,}"


def _about_preferences(comparison: Comparison) -> str:
    return (
        f"{comparison.num_preference_queries} queries, those whose candidates differ in grade."
        " Pairwise loss is −log σ(margin) over all pairs of candidates of different grades, ln 2 = 0.693 for"
        " equal scores; it depends on the scale of the scores, so only scores trained as logits of a"
        " preference (rm) are small by right. Pairwise accuracy is 0.5 by chance. Top-1 accuracy is the share"
        " of queries whose first document has the highest grade among the candidates."
    )


def _about_rankings(comparison: Comparison) -> str:
    return (
        f"NDCG has the gain {GAIN.replace('-', '−')} over all judged documents. The text metrics compare, at"
        f" each of the first {comparison.text_depth} ranks, the document with the expert's (by grade;"
        " equal grades in random order, the mean over several such orders, hence an ideal row below 1); the"
        f" vectors are those of {comparison.text_model}. Documents of one collection resemble each other"
        " in any order: read every column between floor, random and ideal."
    )


def _about_tests(comparison: Comparison) -> str:
    return (
        "Paired randomisation test over queries, two-sided; adjusted by Holm for all comparisons of a table."
        f" Bold: adjusted p below {LEVEL}. What is not bold is not shown to differ, which is not the same as"
        f" being equal. {comparison.num_samples:,} random sign assignments."
    )


def _metric_table(comparison: Comparison, metrics: Sequence[str]) -> str:
    rows = [[row.model, row.method, *(_value(row, metric) for metric in metrics)] for row in comparison.rows]
    return markdown_table(["model", "method", *(LABELS[metric] for metric in metrics)], rows)


def _value(row: MethodRow, metric: str) -> str:
    if metric not in row.values:
        return "–"
    spread = f" ±{row.seed_spread[metric]:.3f}" if metric in row.seed_spread else ""
    return f"{_bounds(row.values[metric])}{spread}"


def _bounds(interval: Interval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _test_table(comparison: Comparison, metric: str) -> str:
    rows = [_test_line(test) for test in comparison.tests if test.metric == metric]
    table = markdown_table(["model", "compared", "difference", "p", "adjusted p"], rows)
    return f"### {LABELS[metric]}\n\n{table}"


def _test_line(test: MethodTest) -> list[str]:
    found = test.difference
    difference = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    bold = "**" if test.adjusted < LEVEL else ""
    return [
        test.model,
        f"{test.first} − {test.second}",
        f"{bold}{difference}{bold}",
        f"{test.p_value:.4f}",
        f"{bold}{test.adjusted:.4f}{bold}",
    ]


def _calibration_table(comparison: Comparison) -> str:
    rows = [
        [
            found.model,
            found.method,
            f"{found.error_as_logits:.3f}",
            "–" if found.error_calibrated is None else f"{found.error_calibrated:.3f}",
            f"{found.num_calibrated} of {found.num_artefacts}",
        ]
        for found in comparison.reliability
    ]
    table = markdown_table(
        ["model", "method", "error of σ(score)", "error calibrated", "artefacts calibrated"], rows
    )
    return (
        "Expected calibration error on test queries, against grade / highest grade, ten bins of equal number:"
        " of the scores read as logits, and as each artefact's own calibration reads them (Platt, fitted on"
        " its dev queries). Both are over the artefacts that state a calibration (over all, where none does):"
        " one whose scores fall as grades rise on its dev queries states none, so methods compare only where"
        f" all are calibrated.\n\n{table}"
    )


def _cost_table(comparison: Comparison) -> str:
    rows = [
        [model, method, f"{seconds:.0f}", *_mean_and_most(comparison.stage_seconds[model][method])]
        for model, by_method in comparison.seconds.items()
        for method, seconds in by_method.items()
    ]
    longest, mean = max(comparison.cell_seconds), fmean(comparison.cell_seconds)
    return (
        "Seconds per fold and seed; cells at work at the same time share the machine. *Steps* are the sum of"
        " all training steps, with those of the stages that a method builds on; workers' start, the"
        " reference's and the reward model's scores, evaluation and checkpoints are not in it. *To the"
        " artefact* is a method's own stage from workers' start to its artefact, with all of these; stages"
        " that it shares with other methods are trained once and not in it. Of a stage that was interrupted"
        " it has the time of the commands that trained it to its end alone. All methods of a model, seed and"
        f" fold and their scoring, with any pause, took {mean:.0f} s on average and {longest:.0f} s at"
        " most.\n\n"
        + markdown_table(["model", "method", "steps", "to the artefact, mean", "to the artefact, most"], rows)
    )


def _mean_and_most(seconds: Sequence[float]) -> list[str]:
    """Return two cells of a table; earlier versions have recorded nothing."""
    return [f"{fmean(seconds):.0f}", f"{max(seconds):.0f}"] if seconds else ["–", "–"]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown; a vertical bar in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
