"""What attributions cost and how true they are: ours against shap's Partition explainer.

    python tests/benchmarks/attribution.py --rounds 3 --texts 4
    python tests/benchmarks/attribution.py --study 10 --causal-artefact runs/train/dpo --figure error.png

Rivals run in turn in one process, on one thread, over the same weights and texts; times are CPU seconds. P1
is shap's own coalitions, evaluated our way: values and numbers of evaluations are compared in the same run.
P2 is what it takes to come as near to the exact Owen values as shap does with 500 evaluations. The scorers
are SmolLM2-135M cut to four layers, behind a prefix of 80 tokens, and MiniLM, each trained for a minute on
the grades of the embedded sample, or the artefacts given. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from shap.explainers import PartitionExplainer
from shap.maskers import Text

from rerank_core.attribution.attributor import DOCUMENTS_AT_ONCE
from rerank_core.attribution.estimators import PartitionOwen, PrunedOwen
from rerank_core.attribution.masking import MaskedText, TokenMasker
from rerank_core.attribution.search import SearchResult, run_searches
from rerank_core.attribution.token_tree import group_members, token_tree
from rerank_core.data.loading import load_collection
from rerank_core.evaluation.attribution_error import attribution_error
from rerank_core.models.artefact import load_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.near_copies import NearCopies
from rerank_core.models.pretrained import resolve_model
from rerank_core.models.scorer import EncodedPair, LanguageModelScorer, PairEncoder, pad
from rerank_core.records import Query
from rerank_core.training.losses import sft_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from rerank_core.attribution.estimators import Estimator
    from rerank_core.attribution.token_tree import Merge
    from rerank_core.models.scorer import SingleNeuronModel

    FloatArray = npt.NDArray[np.float64]

MAX_EVALS = 500
PREFIX = 80
ENCODER_TOKENS, ENCODER_PREFIX = 48, 16  # an encoder's exact values take 80 s a text at 64 and 80
BUDGETS = (100, 150, 200, 250, 300, 400, 500, 800)
EVERYTHING = 10**9
TRAIN_QUERIES = 12
LEARNING_RATE = 3e-5
TRAIN_LENGTH = 128
SEED = 0


# --- scorers and documents


@dataclass(frozen=True, slots=True)
class Task:
    """A scorer, and texts of a number of tokens to attribute for a query."""

    scorer: LanguageModelScorer
    query: Query
    texts: tuple[str, ...]

    def masked(self, text: str, *, has_special_players: bool) -> MaskedText:
        """Return a text as a game of its tokens."""
        masker = TokenMasker(self.scorer.tokenizer)
        spans = [span for span in masker.spans(text) if has_special_players or span[0] < span[1]]
        return masker.masked(text, spans)


def untrained(name: str, *, num_layers: int | None) -> LanguageModelScorer:
    """Return a scorer over a packaged model."""
    folder = resolve_model(name)
    model = build_model(folder, head="linear", num_layers=num_layers, seed=SEED)
    encoder = build_encoder(load_tokenizer(folder), model.config, head="linear", max_length=512)
    return LanguageModelScorer(model, encoder, digest=f"untrained-{name}")


def trained(scorer: LanguageModelScorer) -> LanguageModelScorer:
    """Train a scorer in place on the grades of a few queries of the sample, so that words matter to it."""
    sample = load_collection("sample")
    top = max(grade for grades in sample.qrels.values() for grade in grades.values())
    optimiser = torch.optim.AdamW(scorer.model.parameters(), lr=LEARNING_RATE)
    for query_id in sorted(sample.qrels)[:TRAIN_QUERIES]:
        grades = sample.qrels[query_id]
        pairs = [scorer.encoder.encode(sample.queries[query_id], sample.documents[name]) for name in grades]
        inputs = pad([shortened(pair) for pair in pairs], pad_id=scorer.tokenizer.pad_token_id)
        optimiser.zero_grad()
        sft_loss(scorer.model(**inputs), torch.tensor([grade / top for grade in grades.values()])).backward()
        optimiser.step()
    return LanguageModelScorer(scorer.model, scorer.encoder, digest=f"{scorer.digest}-trained")


def shortened(pair: EncodedPair) -> EncodedPair:
    """Return a pair cut to the length of training, its end kept."""
    if len(pair.input_ids) <= TRAIN_LENGTH:
        return pair
    ids = (*pair.input_ids[: TRAIN_LENGTH - 1], pair.input_ids[-1])
    return EncodedPair(ids, pair.document_start, TRAIN_LENGTH - 1, is_truncated=True)


def build_task(scorer: LanguageModelScorer, *, num_tokens: int, num_texts: int, prefix: int = PREFIX) -> Task:
    """Return the first tokens of documents of the sample, and a query with the prefix's length."""
    sample = load_collection("sample")
    masker = TokenMasker(scorer.tokenizer)
    queries = " ".join(query.text for query in sample.queries.values())
    length = next(n for n in range(5, 1000) if head_length(scorer, queries[:n]) >= prefix)
    texts = []
    documents = list(sample.documents.values())
    last = documents[len(documents) - num_texts :]
    for first, more in zip(last, documents, strict=False):  # one alone may be too short
        text = " ".join(f"{first.text} {more.text}".split())  # shap makes every white space one space
        inner = [span for span in masker.spans(text) if span[0] < span[1]]
        texts.append(text[: inner[num_tokens - 1][1]].rstrip())  # shap strips what it masks
    return Task(scorer, Query("q", queries[:length]), tuple(texts))


def head_length(scorer: LanguageModelScorer, text: str) -> int:
    return len(scorer.encoder.head(Query("q", text)).input_ids)


# --- rivals


class TokenCounter:
    """Counts the tokens that go through a model, padding among them."""

    def __init__(self, model: SingleNeuronModel) -> None:
        self.num_tokens = 0
        model.backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        self.num_tokens += inputs["input_ids"].numel()

    def taken(self) -> int:
        """Return the tokens since the last call."""
        number, self.num_tokens = self.num_tokens, 0
        return number


@dataclass(slots=True)
class Stock:
    """shap as a user would run it: texts to a function that tokenises, pads and scores them."""

    task: Task

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        encoder, pad_id = self.task.scorer.encoder, self.task.scorer.tokenizer.pad_token_id
        head = encoder.head(self.task.query)
        pairs = [encoder.joined(head, encoder.text_ids(str(text))) for text in texts]
        inputs = pad(pairs, pad_id=pad_id)
        with torch.inference_mode():
            return np.asarray(self.task.scorer.model(**inputs).double())

    def attribute(self, text: str, *, max_evals: int) -> tuple[FloatArray, int]:
        """Return a value per player, special tokens among them, and the number of evaluations."""
        explainer = PartitionExplainer(self, Text(self.task.scorer.tokenizer))
        np.random.set_state(np.random.RandomState(SEED).get_state())
        values = explainer([text], max_evals=max_evals, silent=True).values[0]
        return np.asarray(values), explainer.last_eval_count + 2


@dataclass(slots=True)
class Ours:
    """One of our estimators, on all texts in lock-step, as `SearchAttributor` runs it."""

    task: Task
    estimator: Estimator

    def attribute(self, texts: Sequence[str]) -> list[SearchResult]:
        """Return a value per player of each text."""
        has_special_players = self.estimator.has_special_players
        games = [self.task.masked(text, has_special_players=has_special_players) for text in texts]
        near = NearCopies(self.task.scorer)
        return run_searches(
            [self.estimator.search(game, seed=SEED) for game in games],
            lambda asked: near.score_texts([(self.task.query, games[n].left(one)) for n, one in asked]),
        )


# --- measures


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median over rounds of a ratio of CPU seconds, with its bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(longer: Sequence[float], shorter: Sequence[float]) -> Ratio:
    """Return the ratio of times taken in turn."""
    found = np.divide(longer, shorter)
    rng = np.random.default_rng(SEED)
    medians = np.median(found[rng.integers(len(found), size=(2000, len(found)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Ratio(float(np.median(found)), float(low), float(high))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of some work, and what it returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def same_values(name: str, task: Task, *, num_rounds: int) -> tuple[Ratio, float]:
    """Time shap's coalitions both ways, and return the ratio and the largest relative difference."""
    stock, ours = Stock(task), Ours(task, PartitionOwen(MAX_EVALS))
    ours.attribute(task.texts[:1])
    stock.attribute(task.texts[0], max_evals=20)
    counter = TokenCounter(task.scorer.model)
    slow, fast, tokens = [], [], []
    for _ in range(num_rounds):
        counter.taken()
        seconds, theirs = timed(partial(attributed_by, stock, task.texts))
        slow.append(seconds)
        of_stock = counter.taken()
        seconds, results = timed(partial(ours.attribute, task.texts))
        fast.append(seconds)
        tokens.append(of_stock / counter.taken())
    found = ratio(slow, fast)
    difference = largest_difference(theirs, results)
    per_text = len(task.texts)
    say(
        f"{name:44}{np.median(slow) / per_text:8.2f}{np.median(fast) / per_text:8.2f}{found!s:>20}"
        f"{np.mean(tokens):8.2f}{difference:12.1e}"
    )
    return found, difference


def attributed_by(stock: Stock, texts: Sequence[str]) -> list[tuple[FloatArray, int]]:
    """Return shap's values of each text, and its evaluations."""
    return [stock.attribute(text, max_evals=MAX_EVALS) for text in texts]


def largest_difference(theirs: Sequence[tuple[FloatArray, int]], ours: Sequence[SearchResult]) -> float:
    """Return the largest difference of values as a share of a text's largest value; counts must be equal."""
    differences = []
    for (values, num_evals), result in zip(theirs, ours, strict=True):
        if result.num_evals != num_evals:
            raise AssertionError(f"{result.num_evals} evaluations against shap's {num_evals}")
        differences.append(float(np.abs(values - result.values).max() / np.abs(values).max()))
    return max(differences)


def parity(task: Task, *, max_evals: int) -> float:
    """Return the largest difference of values in float64, as a share of the largest value."""
    double = LanguageModelScorer(
        copy.deepcopy(task.scorer.model).double(), task.scorer.encoder, digest=task.scorer.digest
    )
    task = Task(double, task.query, task.texts)
    ours = Ours(task, PartitionOwen(max_evals)).attribute(task.texts)
    stock = [Stock(task).attribute(text, max_evals=max_evals) for text in task.texts]
    return largest_difference(stock, ours)


@dataclass(frozen=True, slots=True)
class SolvedGame:
    """A text whose exact Owen values are known, with the worth of every coalition that its tree needs."""

    masked: MaskedText
    exact: tuple[float, ...]
    worths: dict[int, float]

    def result_of(self, estimator: Estimator, *, seed: int = SEED) -> SearchResult:
        """Return what an estimator finds, without asking the model again."""
        search = estimator.search(self.masked, seed=seed)
        (result,) = run_searches([search], lambda asked: [self.worths[one] for _, one in asked])
        return result


def solved(task: Task, text: str, *, cache: Path | None) -> SolvedGame:
    """Solve a text, once for each scorer, query and text where there is a cache.

    Special tokens are no players here, neither for shap's search nor for ours, so that both search one tree.
    """
    masked = task.masked(text, has_special_players=False)
    file = cache / f"{digest(task, text)}.json" if cache else None
    if file is not None and file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        return SolvedGame(masked, tuple(found["exact"]), {int(key): worth for key, worth in found["worths"]})
    coalitions = sorted(every_coalition(token_tree(masked.segments())))
    scores = NearCopies(task.scorer).score_texts([(task.query, masked.left(one)) for one in coalitions])
    worths = dict(zip(coalitions, scores, strict=True))
    result = SolvedGame(masked, (), worths).result_of(PrunedOwen(EVERYTHING))
    if result.error != 0.0:
        raise AssertionError(f"the exact values have the bound {result.error}")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({"exact": result.values, "worths": list(worths.items())}), encoding="utf-8"
        )
    return SolvedGame(masked, result.values, worths)


def every_coalition(merges: Sequence[Merge]) -> set[int]:
    """Return all coalitions that the Owen values on a tree take: about the square of its players."""
    members, num_players = group_members(merges), len(merges) + 1
    found, open_visits = {0, members[-1]}, [(len(members) - 1, 0)]
    while open_visits:
        group, without = open_visits.pop()
        if group < num_players:
            continue
        left, right = merges[group - num_players]
        beside_left, beside_right = without | members[left], without | members[right]
        found |= {beside_left, beside_right}
        open_visits += [(left, without), (left, beside_right), (right, without), (right, beside_left)]
    return found


def digest(task: Task, text: str) -> str:
    """Return what identifies a solved game: weights, query and text."""
    weights = hashlib.sha256()
    for tensor in task.scorer.model.state_dict().values():
        weights.update(tensor.float().numpy().tobytes())
    return hashlib.sha256(
        json.dumps([weights.hexdigest(), str(task.scorer.encoder.format), task.query.text, text]).encode()
    ).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Curve:
    """A method's error against the exact values at some budgets, the mean over texts."""

    method: str
    budgets: tuple[int, ...]
    relative_l2: tuple[float, ...]

    def budget_for(self, error: float) -> int:
        """Return the least budget whose mean error is at most `error`."""
        return next(
            budget for budget, own in zip(self.budgets, self.relative_l2, strict=True) if own <= error
        )


def study(name: str, task: Task, *, num_seeds: int, cache: Path | None) -> list[Curve]:
    """Print and return how true shap's search and ours are, at each budget.

    The bound over the error, its median, and how often the bound holds are of the searches that state one.
    """
    say(f"\n{name}: {len(task.texts)} texts × {num_seeds} seeds, against exact Owen values, means")
    header = ("evals", "rel. L2", "tau", "top 5", "top 10", "bound stated", "bound/error", "covered")
    say(f"{'':10}" + "".join(f"{word:>13}" for word in header))
    games = [solved(task, text, cache=cache) for text in task.texts]
    seeds = range(SEED, SEED + num_seeds)
    return [curve("shap", PartitionOwen, games, seeds), curve("pruned", PrunedOwen, games, seeds)]


def curve(
    method: str, build: Callable[[int], Estimator], games: Sequence[SolvedGame], seeds: Sequence[int]
) -> Curve:
    """Print and return the errors of one method."""
    means = []
    for budget in BUDGETS:
        results = [(game, game.result_of(build(budget), seed=seed)) for game in games for seed in seeds]
        errors = [
            attribution_error(result.values, game.exact, bound=result.error) for game, result in results
        ]
        relative_l2 = float(np.mean([error.relative_l2 for error in errors]))
        stated = [error for error in errors if error.bound is not None]
        ratios = [error.bound / error.length for error in stated if error.bound and error.length]
        shown = [
            relative_l2,
            np.mean([error.kendall_tau for error in errors]),
            np.mean([error.top_5 for error in errors]),
            np.mean([error.top_10 for error in errors]),
            len(stated) / len(errors),
            *([np.median(ratios)] if ratios else []),
            *([np.mean([error.is_covered for error in stated])] if stated else []),
        ]
        means.append(relative_l2)
        say(f"{method:10}{budget:13}" + "".join(f"{value:13.3f}" for value in shown))
    return Curve(method, BUDGETS, tuple(means))


def same_error(task: Task, curves: Sequence[Curve], *, num_rounds: int) -> Ratio:
    """Return what shap's 500 evaluations cost against our way to the same error."""
    theirs, ours = curves
    error = theirs.relative_l2[theirs.budgets.index(MAX_EVALS)]
    budget = ours.budget_for(error)
    stock, pruned = Stock(task), Ours(task, PrunedOwen(budget))
    pruned.attribute(task.texts[:1])
    counter = TokenCounter(task.scorer.model)
    slow, fast, tokens = [], [], []
    for _ in range(num_rounds):
        counter.taken()
        slow.append(timed(partial(attributed_by, stock, task.texts))[0])
        of_stock = counter.taken()
        fast.append(timed(partial(pruned.attribute, task.texts))[0])
        tokens.append(of_stock / counter.taken())
    found = ratio(slow, fast)
    say(
        f"the error of shap at {MAX_EVALS} evaluations, {error:.3f}, is reached at {budget}:"
        f" {found} times cheaper; padded tokens {np.mean(tokens):.2f}"
    )
    return found


class FreeModel:
    """A causal model that costs nothing: the score is a number of the last token's position."""

    can_pack = True

    def __init__(self, model: SingleNeuronModel) -> None:
        self.head = model.head
        self._score_at = torch.sin(torch.arange(model.config.max_position_embeddings).double() * 1.7)

    def forward_cached(self, *, position_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Return one number per row."""
        return self._score_at.take(position_ids[:, -1])


def overhead_ms(task: Task, *, num_rounds: int) -> float:
    """Return the milliseconds of a document's attribution that are not the model's, several at once."""
    model: Any = FreeModel(task.scorer.model)
    free = copy.copy(task.scorer)
    free.model = model
    ours = Ours(Task(free, task.query, task.texts), PartitionOwen(MAX_EVALS))
    seconds = [timed(partial(ours.attribute, task.texts))[0] for _ in range(2 * num_rounds + 1)]
    return 1000 * float(np.median(seconds[1:])) / len(task.texts)


def draw(curves_by_scorer: dict[str, list[Curve]], file: Path) -> None:
    """Write the picture of error against evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves_by_scorer), 3.4), layout="constrained")
    for axes, (name, curves) in zip(
        np.atleast_1d(figure.subplots(1, len(curves_by_scorer), sharey=True)),
        curves_by_scorer.items(),
        strict=True,
    ):
        for curve, style in zip(curves, ("o--", "s-"), strict=True):
            axes.plot(curve.budgets, curve.relative_l2, style, label=curve.method, markersize=4)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("evaluations")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("‖values − exact‖ / ‖exact‖")
    figure.axes[0].legend()
    figure.savefig(file, dpi=150)


def say(text: str) -> None:
    """Print at once: the measurements take minutes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure, print tables, and the summary as JSON."""
    options = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    causal = scorer_of(options.causal_artefact, partial(untrained, "smollm2", num_layers=4))
    encoder = scorer_of(options.encoder_artefact, partial(untrained, "minilm", num_layers=None))
    task = partial(build_task, num_texts=options.texts)
    say(f"{'same values as shap':44}{'shap s':>8}{'ours s':>8}{'ratio':>20}{'tokens':>8}{'difference':>12}")
    p1 = {
        num_tokens: same_values(
            f"causal, M = {num_tokens}", task(causal, num_tokens=num_tokens), num_rounds=options.rounds
        )
        for num_tokens in (64, 32)
    }
    of_encoder = same_values("encoder, M = 64", task(encoder, num_tokens=64), num_rounds=options.rounds)
    differences = [
        parity(
            build_task(scorer, num_tokens=num_tokens, num_texts=options.parity),
            max_evals=options.parity_evals,
        )
        for scorer in (causal, encoder)
        for num_tokens in options.parity_tokens
    ]
    say(
        f"float64, {options.parity} texts of each of {options.parity_tokens} tokens:"
        f" largest difference {max(differences):.1e}"
    )
    curves = {
        name: study(name, studied, num_seeds=options.seeds, cache=options.cache)
        for name, studied in (
            ("causal, M = 64", build_task(causal, num_tokens=64, num_texts=options.study)),
            (
                f"encoder, M = {ENCODER_TOKENS}",
                build_task(
                    encoder,
                    num_tokens=ENCODER_TOKENS,
                    num_texts=options.study_encoder,
                    prefix=ENCODER_PREFIX,
                ),
            ),
        )
        if studied.texts
    }
    p2 = same_error(task(causal, num_tokens=64), curves["causal, M = 64"], num_rounds=options.rounds)
    if options.figure:
        draw(curves, options.figure)
    summary = {
        "p1_m64": round(p1[64][0].median, 2),
        "p1_m32": round(p1[32][0].median, 2),
        "p1_encoder_m64": round(of_encoder[0].median, 2),
        "p2_m64": round(p2.median, 2),
        "overhead_ms": round(
            overhead_ms(
                build_task(causal, num_tokens=64, num_texts=DOCUMENTS_AT_ONCE), num_rounds=options.rounds
            ),
            1,
        ),
        "max_rel_diff": max(differences),
    }
    say(json.dumps(summary))


def scorer_of(artefact: Path | None, build: Callable[[], LanguageModelScorer]) -> LanguageModelScorer:
    """Return the scorer of an artefact, with room for the texts here, or one trained for a minute."""
    if artefact is None:
        return trained(build())
    found = load_artefact(artefact, device="cpu")
    wide = replace(found.encoder.format, max_length=512, max_query_length=256)
    return LanguageModelScorer(found.model, PairEncoder(found.tokenizer, wide), digest=found.digest)


def parse_arguments() -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds over all texts")
    parser.add_argument("--texts", type=int, default=4, help="texts of a round")
    parser.add_argument("--parity", type=int, default=1, help="texts compared in float64, of each length")
    parser.add_argument("--parity-evals", type=int, default=MAX_EVALS, help="evaluations of each of them")
    parser.add_argument("--parity-tokens", type=int, nargs="+", default=[32], help="their lengths")
    parser.add_argument("--study", type=int, default=4, help="texts with exact values, causal scorer")
    parser.add_argument("--study-encoder", type=int, default=0, help="texts with exact values, encoder")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each search in the study")
    parser.add_argument("--causal-artefact", type=Path, help="a trained causal scorer")
    parser.add_argument("--encoder-artefact", type=Path, help="a trained encoder scorer")
    parser.add_argument("--cache", type=Path, help="folder that keeps exact values")
    parser.add_argument("--figure", type=Path, help="file for the picture of error against evaluations")
    options = parser.parse_args()
    if options.study < 1:
        parser.error("--study must be at least 1: the cost to reach shap's error is measured on it")
    return options


if __name__ == "__main__":
    main()
