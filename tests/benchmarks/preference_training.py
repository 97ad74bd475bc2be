"""What a training step on the preference pairs of one query costs: ours against training pair by pair.

    python tests/benchmarks/preference_training.py --rounds 7 --prefix 40 80

Rivals run in turn in one process, on one thread, over the same weights; before anything is timed their
gradients are compared. Times are CPU seconds of forward and backward, with building the batch and without
tokenising. Peak memory is what one step adds to the resident memory of a fresh process (Linux). The last line
is a JSON object on the prefix of 80 tokens, or on the last prefix where 80 is not among them.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from rerank_core.models.build import build_model, load_tokenizer
from rerank_core.models.pretrained import resolve_model
from rerank_core.models.scorer import EncodedPair, SingleNeuronModel, pad
from rerank_core.training.batching import RankingCollator, RankingExample
from rerank_core.training.list_model import ListModel
from rerank_core.training.losses import bradley_terry_loss, dpo_loss
from rerank_core.training.policy import discounted_rewards, ranking_log_prob, sample_rankings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    from transformers import PreTrainedModel
    from trl.trainer.reward_trainer import RewardTrainer

    FloatArray = npt.NDArray[np.float64]

MODEL = "smollm2"
DOCUMENT_TOKENS = (27, 96)
FIRST_TOKEN = 10  # behind the special tokens, padding among them
MAX_TOKENS = 8192
BETA = 0.1
PAIRS_PER_FORWARD = (5, 25)  # of the pair-wise rivals; the faster one counts
NUM_RANKINGS = 64
HEADLINE_PREFIX = 80
SEED = 0
HEAD_BIAS = "model.head.bias"  # cancels in every margin
MIB = 2**20


# --- one query


def random_example(*, prefix: int, num_documents: int, vocabulary: int, seed: int) -> RankingExample:
    """Return a query of random tokens; each document of the better half beats each of the other."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*DOCUMENT_TOKENS, size=num_documents, endpoint=True).tolist()
    start = rng.integers(FIRST_TOKEN, vocabulary, size=prefix).tolist()
    documents = tuple(
        EncodedPair(
            (*start, *rng.integers(FIRST_TOKEN, vocabulary, size=length).tolist()),
            document_start=prefix,
            document_end=prefix + length,
            is_truncated=False,
        )
        for length in lengths
    )
    half = num_documents // 2
    pairs = [(chosen, rejected) for chosen in range(half) for rejected in range(half, num_documents)]
    return RankingExample(
        query_id="q",
        documents=documents,
        grades=tuple(int(place < half) for place in range(num_documents)),
        max_grade=1,
        chosen=tuple(chosen for chosen, _ in pairs),
        rejected=tuple(rejected for _, rejected in pairs),
    )


def pair_batches(
    example: RankingExample, size: int
) -> Iterator[tuple[tuple[EncodedPair, ...], tuple[EncodedPair, ...]]]:
    """Yield the chosen and the rejected documents of `size` pairs after the other."""
    for first in range(0, len(example.chosen), size):
        pairs = slice(first, first + size)
        yield (
            tuple(example.documents[place] for place in example.chosen[pairs]),
            tuple(example.documents[place] for place in example.rejected[pairs]),
        )


# --- ways to fill the gradients; each returns the padded tokens that went through a model


def list_scores(model: ListModel, example: RankingExample, *, pad_id: int) -> tuple[Tensor, int]:
    """Return the scores of a query's documents, (documents,), and the padded tokens that they took."""
    collator = RankingCollator(pad_id=pad_id, can_pack=model.model.can_pack, max_tokens=MAX_TOKENS)
    inputs = collator([example])
    del inputs["examples"]
    return model(**inputs), sum(batch["input_ids"].numel() for batch in inputs["batches"])


def fill_by_list(model: ListModel, example: RankingExample, *, pad_id: int) -> int:
    """Whyrank's step: DPO where the example has the reference's scores, else Bradley–Terry."""
    scores, num_tokens = list_scores(model, example, pad_id=pad_id)
    chosen, rejected = torch.tensor(example.chosen), torch.tensor(example.rejected)
    margin = scores[chosen] - scores[rejected]
    if example.reference_scores:
        reference = scores.new_tensor(example.reference_scores)
        loss = dpo_loss(margin, reference[chosen] - reference[rejected], beta=BETA)
    else:
        loss = bradley_terry_loss(margin)
    loss.backward()
    return num_tokens


def fill_by_pairs(
    model: SingleNeuronModel, example: RankingExample, *, reference: SingleNeuronModel, size: int, pad_id: int
) -> int:
    """DPO pair by pair with an online reference: chosen and rejected in one padded batch."""
    num_tokens = 0
    for chosen, rejected in pair_batches(example, size):
        inputs = pad([*chosen, *rejected], pad_id=pad_id)
        better, worse = model(**inputs).chunk(2)
        with torch.no_grad():
            better_before, worse_before = reference(**inputs).chunk(2)
        loss = dpo_loss(better - worse, better_before - worse_before, beta=BETA)
        (loss * len(chosen) / len(example.chosen)).backward()
        num_tokens += 2 * inputs["input_ids"].numel()
    return num_tokens


def fill_by_trl(trainer: RewardTrainer, model: nn.Module, *, example: RankingExample, size: int) -> int:
    """TRL's own collator and loss."""
    num_tokens = 0
    for chosen, rejected in pair_batches(example, size):
        inputs = trainer.data_collator(trl_rows(chosen, rejected))
        num_tokens += inputs["input_ids"].numel()
        (trainer.compute_loss(model, inputs) * len(chosen) / len(example.chosen)).backward()
    return num_tokens


def trl_rows(chosen: Sequence[EncodedPair], rejected: Sequence[EncodedPair]) -> list[dict[str, Any]]:
    """Return pairs as TRL reads them."""
    return [
        {"chosen_ids": list(better.input_ids), "rejected_ids": list(worse.input_ids)}
        for better, worse in zip(chosen, rejected, strict=True)
    ]


# --- models


def classifier(model: SingleNeuronModel, *, pad_id: int) -> PreTrainedModel:
    """Return transformers' sequence classifier over the very parameters of a scorer; it has no bias."""
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, pad_id
    with torch.device("meta"):
        found: Any = transformers.AutoModelForSequenceClassification.from_config(config)
    found.model, found.score.weight = model.backbone, model.head.weight
    classifying: PreTrainedModel = found.train()
    return classifying


def reward_trainer(
    model: PreTrainedModel, example: RankingExample, *, tokenizer: Any, folder: Path
) -> RewardTrainer:
    """Return TRL's trainer of a classifier, in fp32, without gradient checkpointing."""
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    ((chosen, rejected),) = pair_batches(example, len(example.chosen))
    arguments = RewardConfig(
        output_dir=str(folder),
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    return RewardTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(trl_rows(chosen, rejected)),
    )


def in_double(model: SingleNeuronModel) -> SingleNeuronModel:
    """Return a copy in fp64 throughout: Llama's own norm computes in fp32, whatever it is given."""
    model = copy.deepcopy(model)
    for layer in list(model.modules()):
        norms: list[tuple[str, Any]] = list(layer.named_children())
        for name, norm in norms:
            if type(norm).__name__ == "LlamaRMSNorm":
                own = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                own.weight = norm.weight
                setattr(layer, name, own)
    return model.double()


# --- contests


@dataclass(frozen=True, slots=True)
class Step:
    """One way to fill a model's gradients; `fill` returns the padded tokens that went through a model."""

    name: str
    fill: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Contest:
    """Our step, and the same pair by pair, over the same parameters.

    `beforehand` is what ours has computed once for all epochs and a rival computes in every step.
    """

    model: nn.Module
    ours: Step
    rivals: tuple[Step, ...]
    beforehand: Step | None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them, ours first and what comes beforehand last."""
        return (self.ours, *self.rivals, *([self.beforehand] if self.beforehand else []))


@dataclass(frozen=True, slots=True)
class Bench:
    """A model, a query to train on, and TRL's trainer."""

    model: SingleNeuronModel
    example: RankingExample
    trainer: RewardTrainer
    pad_id: int

    def in_double(self) -> Bench:
        """Return the same in fp64 and on four documents, which is enough to compare gradients."""
        documents = self.example.documents[:2] + self.example.documents[-2:]
        example = replace(self.example, documents=documents, chosen=(0, 0, 1, 1), rejected=(2, 3, 2, 3))
        return replace(self, model=in_double(self.model), example=example)

    def contests(self) -> dict[str, Contest]:
        """Return the contests by the name of their ratio."""
        return {"vs_reward_trainer": self.reward_contest(), "vs_pairwise_dpo": self.dpo_contest()}

    def reward_contest(self) -> Contest:
        """Bradley–Terry, against TRL's RewardTrainer."""
        model, theirs = ListModel(self.model), classifier(self.model, pad_id=self.pad_id)
        rivals = [
            Step(
                f"TRL RewardTrainer, {size} pairs a forward",
                partial(fill_by_trl, self.trainer, theirs, example=self.example, size=size),
            )
            for size in PAIRS_PER_FORWARD
        ]
        ours = Step("ours, Bradley–Terry", partial(fill_by_list, model, self.example, pad_id=self.pad_id))
        return Contest(model, ours, tuple(rivals), None)

    def dpo_contest(self) -> Contest:
        """DPO with cached reference scores, against the pair-wise step with an online reference."""
        model, reference = ListModel(self.model), frozen_reference(self.model)
        score = torch.no_grad()(partial(list_scores, ListModel(reference), self.example, pad_id=self.pad_id))
        example = replace(self.example, reference_scores=tuple(score()[0].tolist()))
        rivals = [
            Step(
                f"pair-wise DPO, {size} pairs a forward",
                partial(
                    fill_by_pairs, self.model, example, reference=reference, size=size, pad_id=self.pad_id
                ),
            )
            for size in PAIRS_PER_FORWARD
        ]
        ours = Step("ours, DPO", partial(fill_by_list, model, example, pad_id=self.pad_id))
        return Contest(model, ours, tuple(rivals), Step("reference scores, once", lambda: score()[1]))


def frozen_reference(model: SingleNeuronModel) -> SingleNeuronModel:
    """Return a frozen scorer whose margins differ from the model's."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.head.weight.mul_(2)
    return reference.requires_grad_(False)


def build_bench(*, prefix: int, num_layers: int, num_documents: int, folder: Path) -> Bench:
    """Return a bench on the first layers of the packaged SmolLM2."""
    source = resolve_model(MODEL)
    tokenizer = load_tokenizer(source)
    model = build_model(source, head="linear", num_layers=num_layers, seed=0).train()
    example = random_example(prefix=prefix, num_documents=num_documents, vocabulary=len(tokenizer), seed=SEED)
    theirs = classifier(model, pad_id=tokenizer.pad_token_id)
    trainer = reward_trainer(theirs, example, tokenizer=tokenizer, folder=folder)
    return Bench(model, example, trainer, tokenizer.pad_token_id)


# --- measures


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median over rounds of how many times longer something takes, with its bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Timing:
    """A step's CPU seconds, (rounds,), without and with the optimiser's step, and its padded tokens."""

    name: str
    seconds: FloatArray
    with_optimiser: FloatArray
    num_tokens: int


def ratio(longer: FloatArray, shorter: FloatArray) -> Ratio:
    """Return the ratio of times of the same rounds."""
    found = longer / shorter
    rng = np.random.default_rng(SEED)
    medians = np.median(found[rng.integers(len(found), size=(2000, len(found)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Ratio(float(np.median(found)), float(low), float(high))


def largest_difference(contest: Contest) -> float:
    """Return the largest ‖g - g'‖ / ‖g'‖ over the rivals and over the parameters that both train."""
    ours, *theirs = (gradients(step, contest.model) for step in (contest.ours, *contest.rivals))
    return max(
        float((ours[name] - grad).norm() / grad.norm())
        for rival in theirs
        for name, grad in rival.items()
        if name != HEAD_BIAS
    )


def gradients(step: Step, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that a step fills, by name."""
    model.zero_grad(set_to_none=True)
    step.fill()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def time_in_turn(contest: Contest, *, num_rounds: int) -> list[Timing]:
    """Time the steps in turn, after one round to warm up.

    The learning rate is 0: the optimiser does its whole work, and every round meets the same weights.
    """
    optimiser = torch.optim.AdamW(contest.model.parameters(), lr=0.0)
    seconds = np.zeros((len(contest.steps), num_rounds + 1, 2))
    num_tokens = [0] * len(contest.steps)
    for number in range(num_rounds + 1):
        for place, step in enumerate(contest.steps):
            optimiser.zero_grad(set_to_none=True)
            start = time.process_time()
            num_tokens[place] = step.fill()
            seconds[place, number, 0] = time.process_time() - start
            optimiser.step()
            seconds[place, number, 1] = time.process_time() - start
    return [
        Timing(step.name, seconds[place, 1:, 0], seconds[place, 1:, 1], num_tokens[place])
        for place, step in enumerate(contest.steps)
    ]


@torch.inference_mode()
def policy_ratio(bench: Bench, *, num_rounds: int) -> Ratio:
    """Return how many forwards over the list PPO's samples cost, the one that scores the list included."""
    model, generator = ListModel(bench.model), torch.Generator().manual_seed(SEED)
    gains = torch.tensor(bench.example.grades, dtype=torch.float32)
    seconds = np.zeros((num_rounds + 1, 2))
    for number in range(num_rounds + 1):
        start = time.process_time()
        scores, _ = list_scores(model, bench.example, pad_id=bench.pad_id)
        seconds[number, 0] = time.process_time() - start
        rankings = sample_rankings(scores, num_rankings=NUM_RANKINGS, generator=generator)
        discounted_rewards(rankings, gains)
        ranking_log_prob(scores, rankings)
        seconds[number, 1] = time.process_time() - start
    return ratio(seconds[1:, 1], seconds[1:, 0])


def resident_bytes(field: str) -> int:
    """Return VmRSS, the resident memory, or VmHWM, its peak, of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak_of_one_step(step: Step) -> int:
    """Return by how much a step raises this process's resident memory at the peak, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far
    before = resident_bytes("VmRSS")
    step.fill()
    return resident_bytes("VmHWM") - before


def peak_in_fresh_process(name: str, options: argparse.Namespace, *, prefix: int) -> int:
    """Return the peak of the step of that name, measured in a process that has done nothing else."""
    command = [sys.executable, __file__, "--memory-of", name, "--prefix", str(prefix)]
    command += ["--layers", str(options.layers), "--documents", str(options.documents)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


# --- the report


def report(bench: Bench, options: argparse.Namespace, *, prefix: int) -> dict[str, float]:
    """Print what was measured on one prefix, and return the summary."""
    lengths = [len(document.input_ids) - prefix for document in bench.example.documents]
    say(f"prefix {prefix}, documents of {lengths} tokens, {len(bench.example.chosen)} pairs")
    double = bench.in_double().contests()
    summary: dict[str, float] = {}
    differences = []
    for name, contest in bench.contests().items():
        differences.append(largest_difference(contest))
        in_fp64 = largest_difference(double[name])
        say(f"  largest relative difference of gradients: fp32 {differences[-1]:.1e}, fp64 {in_fp64:.1e}")
        summary[name] = report_contest(contest, options, prefix=prefix)
    policy = policy_ratio(bench, num_rounds=4 * options.rounds)
    say(f"  PPO, {NUM_RANKINGS} rankings: {policy} forwards")
    return summary | {"grad_rel_diff": max(differences), "ppo_passes_k64": round(policy.median, 4)}


def report_contest(contest: Contest, options: argparse.Namespace, *, prefix: int) -> float:
    """Time a contest, print its table and ratios, and return the ratio to the faster rival."""
    timings = time_in_turn(contest, num_rounds=options.rounds)
    say(f"  {'':40}{'padded tokens':>14}{'CPU s':>8}{'+ AdamW':>9}{'peak MiB':>10}")
    for timing in timings:
        peak = peak_in_fresh_process(timing.name, options, prefix=prefix) / MIB
        seconds, whole = np.median(timing.seconds), np.median(timing.with_optimiser)
        say(f"  {timing.name:40}{timing.num_tokens:14}{seconds:8.2f}{whole:9.2f}{peak:10.0f}")
    ours = timings[0]
    rivals = timings[1 : len(contest.rivals) + 1]
    rival = min(rivals, key=lambda timing: float(np.median(timing.seconds)))
    found = ratio(rival.seconds, ours.seconds)
    say(f"  {rival.name} ÷ ours: {found}", end="; ")
    say(f"with AdamW {ratio(rival.with_optimiser, ours.with_optimiser)}", end="; ")
    say(f"padded tokens {rival.num_tokens / ours.num_tokens:.2f}")
    if contest.beforehand is not None:
        together = ratio(rival.seconds, ours.seconds + timings[-1].seconds)
        say(f"  {rival.name} ÷ (ours + {contest.beforehand.name}): {together}")
    return round(found.median, 2)


def say(text: str, *, end: str = "\n") -> None:
    """Print at once: the measurements take minutes."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def main() -> None:
    """Measure, print a table for each prefix, and the summary as JSON."""
    options = parse_arguments()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    summaries = {}
    with tempfile.TemporaryDirectory() as folder:
        for prefix in options.prefix:
            bench = build_bench(
                prefix=prefix,
                num_layers=options.layers,
                num_documents=options.documents,
                folder=Path(folder),
            )
            if options.memory_of:
                steps = {step.name: step for contest in bench.contests().values() for step in contest.steps}
                say(str(peak_of_one_step(steps[options.memory_of])))
                return
            summaries[prefix] = report(bench, options, prefix=prefix)
    say(json.dumps(summaries.get(HEADLINE_PREFIX, summaries[options.prefix[-1]])))


def parse_arguments() -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one to warm up")
    parser.add_argument("--prefix", type=int, nargs="+", default=[40, 80], help="tokens before the document")
    parser.add_argument("--layers", type=int, default=4, help="layers of SmolLM2-135M that are kept")
    parser.add_argument("--documents", type=int, default=10, help="documents of the query")
    parser.add_argument("--memory-of", default="", help="only print the peak memory of the step of this name")
    return parser.parse_args()


if __name__ == "__main__":
    main()
