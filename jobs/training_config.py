"""The frozen configuration of the jobs that train, checked once, before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - tyro reads the annotations
from typing import Literal, get_args

from jobs.config import PLACE, check_setting

Objective = Literal["warmup", "sft", "rm", "dpo", "ppo"]
Method = Literal["sft", "rm", "dpo", "ppo"]

COMPARED = {"digest": False, "compared": True}
"""Marks a field that says what is compared and how, not how a cell is trained: it may change later."""

GenerativeObjective = Literal["sft", "dpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """How long and how fast one objective is trained."""

    num_epochs: int = 8
    """Passes over the training queries."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW; falls linearly to zero."""
    queries_per_step: int = 4
    """Queries in one optimiser step, over all workers; each brings all its candidates."""
    warmup_share: float = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""

    def __post_init__(self) -> None:
        check_setting(self.num_epochs >= 1, f"num_epochs must be at least 1, got {self.num_epochs}")
        check_setting(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        check_setting(
            self.queries_per_step >= 1, f"queries_per_step must be at least 1, got {self.queries_per_step}"
        )
        check_setting(0 <= self.warmup_share < 1, f"warmup_share must lie in [0, 1), got {self.warmup_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig(StageConfig):
    """Supervised learning of the grades."""

    loss: Literal["mse", "cross_entropy", "list_mle", "lambda"] = "mse"
    """Regression of sigmoid(score) on grade / max grade, its cross-entropy, ListMLE, or LambdaLoss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelConfig(StageConfig):
    """A reward model: the scorer whose judgement PPO maximises, and a scorer in its own right."""

    loss: Literal["bradley_terry", "mse"] = "bradley_terry"
    """Bradley-Terry on preference pairs, or pointwise regression on grades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoConfig(StageConfig):
    """Direct preference optimisation against the frozen SFT scorer."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    """Pair by pair, or each chosen document against all its rejected ones at once (S-DPO)."""

    def __post_init__(self) -> None:
        super(DpoConfig, self).__post_init__()
        check_setting(self.beta > 0, f"beta must be positive, got {self.beta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoConfig(StageConfig):
    """Proximal policy optimisation of a Plackett-Luce policy over each query's candidates."""

    reward: Literal["reward_model", "grades"] = "reward_model"
    """The DCG of a ranking by the frozen reward model's scores, or its true NDCG."""
    reward_model: Path | None = field(default=None, metadata=PLACE)
    """Artefact of the reward model; none takes the job's own `rm` stage."""
    num_rankings: int = 64
    """Rankings sampled per query; they share one scoring pass."""
    updates_per_rollout: int = 2
    """Optimiser steps on the same sampled rankings."""
    clip: float = 0.2
    """How far the probability ratio of a ranking may move from 1."""
    kl_weight: float = 0.05
    """Weight of KL(policy || reference) in the loss."""
    max_kl: float = 10.0
    """The stage ends early, with the weights it has, at a step whose mean KL in nats exceeds this."""

    def __post_init__(self) -> None:
        super(PpoConfig, self).__post_init__()
        check_setting(self.num_rankings >= 2, f"num_rankings must be at least 2, got {self.num_rankings}")
        check_setting(
            self.updates_per_rollout >= 1,
            f"updates_per_rollout must be at least 1, got {self.updates_per_rollout}",
        )
        check_setting(0 < self.clip < 1, f"clip must lie between 0 and 1, got {self.clip}")
        check_setting(self.kl_weight >= 0, f"kl_weight must not be negative, got {self.kl_weight}")
        check_setting(self.max_kl > 0, f"max_kl must be positive, got {self.max_kl}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerTraining:
    """How scorers are trained, whichever model, objective and fold."""

    prepared: Path = field(metadata=PLACE)
    """Folder written by `whyrank prepare`."""
    output: Path = field(metadata=PLACE)
    """Folder that receives everything."""
    head: Literal["linear", "yes_no"] = "linear"
    """A fresh linear neuron, or the difference of the language model's rows for "yes" and "no"."""
    max_length: int = 256
    """Tokens of query and document together; longer documents are cut, and counted."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of training."""
    sft: SftConfig = SftConfig()
    """Settings of SFT."""
    rm: RewardModelConfig = RewardModelConfig()
    """Settings of the reward model."""
    dpo: DpoConfig = DpoConfig()
    """Settings of DPO."""
    ppo: PpoConfig = PpoConfig()
    """Settings of PPO."""
    patience: int = 0
    """Epochs without a better NDCG on the fold's dev queries after which a stage ends; its artefact is then
    that of the best epoch. 0 trains all epochs and takes the last."""
    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers; 0 trains all weights."""
    max_tokens_per_batch: int = 8192
    """Tokens of one query's documents in one forward pass; a longer list is scored in parts, none is lost."""
    gradient_checkpointing: bool = False
    """Recompute the layers' activations in the backward pass: less memory, about a third more time."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage; 0 is plain data parallelism under DeepSpeed."""
    offload_optimizer: bool = False
    """Keep the optimiser's states in the memory of the CPU (ZeRO 1 to 3)."""
    num_workers: int = 2
    """Ray Train workers, each with a GPU where there are GPUs, else a CPU; a resumed job keeps the number."""
    max_failures: int = field(default=3, metadata=PLACE)
    """How often a failed worker group is restarted from its last checkpoint."""
    address: str | None = field(default=None, metadata=PLACE)
    """Address of a running Ray cluster; none starts a local Ray and stops it again."""

    def __post_init__(self) -> None:
        check_setting(self.max_length >= 16, f"max_length must be at least 16, got {self.max_length}")
        check_setting(self.num_workers >= 1, f"num_workers must be at least 1, got {self.num_workers}")
        check_setting(self.lora_rank >= 0, f"lora_rank must not be negative, got {self.lora_rank}")
        check_setting(self.max_failures >= 0, f"max_failures must not be negative, got {self.max_failures}")
        check_setting(self.patience >= 0, f"patience must not be negative, got {self.patience}")
        check_setting(
            self.max_tokens_per_batch >= 1,
            f"max_tokens_per_batch must be at least 1, got {self.max_tokens_per_batch}",
        )
        check_setting(
            not (self.offload_optimizer and self.zero_stage == 0),
            "offload_optimizer needs a ZeRO stage of 1 to 3; raise --zero-stage",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob(ScorerTraining):
    """Train a single-neuron scorer on one fold; writes one reranker artefact per objective.

    `--recipe` names the settings to start from (sft, rm, dpo, ppo, small_cpu, paper_llama, paper_qwen, ...);
    further arguments change single settings. SFT and the reward model start from the model (or its warm-up),
    DPO and PPO from SFT, which is also their frozen reference.

    Examples:
      whyrank train --recipe dpo --prepared runs/sample --output runs/minilm
      whyrank train --recipe ppo --prepared runs/sample --output runs/smollm2 \\
        --model smollm2 --num-layers 4 --zero-stage 2
      whyrank train --recipe paper_llama --prepared runs/mine --output runs/llama \\
        --model path/to/llama --lora-rank 16
    """

    output: Path = field(metadata=PLACE)
    """Folder that receives an artefact per objective (`sft/`, `dpo/`, ...), logs and checkpoints."""
    fold: int = 0
    """Which fold of the prepared folder."""
    model: str = "minilm"
    """`minilm`, `smollm2`, a model folder, or a Hugging Face name (encoder or causal language model)."""
    num_layers: int | None = None
    """Keep only the first layers of the model (for small machines)."""
    objectives: tuple[Objective, ...] = ("sft", "dpo")
    """The objectives in order: SFT and the reward model start from the model or its warm-up, DPO and PPO from
    SFT. None at all writes the untrained scorer."""
    warmup: StageConfig = StageConfig(num_epochs=1)
    """Settings of the warm-up: titles of the corpus as queries, their texts as answers; uses no judgement."""
    lora_export: Literal["merged", "adapter"] = "merged"
    """Whether an artefact holds adapters merged into its weights, or beside them."""
    seed: int = 0
    """Seed of initialisation and data order."""

    def __post_init__(self) -> None:
        super(TrainJob, self).__post_init__()
        check_setting(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        check_setting(
            self.num_layers is None or self.num_layers >= 1,
            f"num_layers must be at least 1, got {self.num_layers}",
        )
        self._check_objectives()

    def _check_objectives(self) -> None:
        check_setting(
            len(set(self.objectives)) == len(self.objectives),
            f"an objective is named twice in {self.objectives}",
        )
        in_order = [name for name in get_args(Objective) if name in self.objectives]
        check_setting(
            list(self.objectives) == in_order,
            f"objectives must be in the order {', '.join(in_order)} (the SFT scorer is DPO's reference)",
        )
        check_setting(
            "ppo" not in self.objectives
            or self.ppo.reward == "grades"
            or (self.ppo.reward_model is None) == ("rm" in self.objectives),
            "PPO takes its reward from one reward model: either add rm to --objectives, or name an artefact"
            " with --ppo.reward-model, or choose --ppo.reward grades",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareJob(ScorerTraining):
    """Train methods x models x seeds on every fold, and compare them in tables with intervals and figures.

    A cell is one model, seed and fold; its methods share their SFT and reward-model stages. The same command,
    also with more models or seeds, does not train finished cells again. Every artefact is kept.

    `--recipe` names the settings to start from, as in `whyrank train`; further arguments change single ones.

    Examples:
      whyrank compare --prepared runs/sample --output runs/comparison
      whyrank compare --recipe small_cpu --prepared runs/sample --output runs/comparison \\
        --models minilm smollm2:4 --seeds 0 1 2
      whyrank compare --recipe paper_llama --prepared runs/mine --output runs/paper --parallel-cells 4 \\
        --models path/to/llama path/to/mistral --address auto
    """

    output: Path = field(metadata=PLACE)
    """Folder that receives comparison.md, its figures, per_query.parquet, and the cells."""
    methods: tuple[Method, ...] = ("sft", "rm", "dpo", "ppo")
    """The methods to compare; what they start from or are rewarded by is trained too."""
    models: tuple[str, ...] = field(default=("minilm",), metadata=COMPARED)
    """Each as in `whyrank train --model`; `NAME:N` keeps the first N layers."""
    seeds: tuple[int, ...] = field(default=(0, 1, 2), metadata=COMPARED)
    """Seeds of initialisation and data order; a query's value is the mean over them."""
    patience: int = 2
    """Epochs without a better NDCG on the fold's dev queries after which a stage ends; its artefact is then
    that of the best epoch. 0 trains all epochs and takes the last."""
    num_workers: int = 1
    """Ray Train workers of one cell, each with a GPU where there are GPUs, else a CPU."""
    parallel_cells: int = field(default=2, metadata=PLACE)
    """Cells at work at the same time."""
    text_model: str = field(default="minilm", metadata=COMPARED)
    """The model whose token vectors give cosine and BERTScore: a name or folder as for `--models`."""
    text_depth: int = field(default=10, metadata=COMPARED)
    """Ranks whose documents are compared as texts."""
    num_samples: int = field(default=10_000, metadata=COMPARED)
    """Samples of the bootstrap and of the randomisation test, over queries."""

    def __post_init__(self) -> None:
        super(CompareJob, self).__post_init__()
        for name in ("methods", "models", "seeds"):
            values = getattr(self, name)
            check_setting(bool(values), f"{name} must name at least one")
            check_setting(len(set(values)) == len(values), f"one of {name} is named twice: {values}")
        for name in ("parallel_cells", "text_depth"):
            check_setting(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        check_setting(min(self.seeds) >= 0, f"seeds must not be negative, got {self.seeds}")
        check_setting(self.num_samples >= 100, f"num_samples must be at least 100, got {self.num_samples}")
        check_setting(
            self.ppo.reward_model is None,
            "a comparison trains a reward model in every cell; leave --ppo.reward-model out",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryJob:
    """Print the memory that training a model would take, for each ZeRO stage; needs no weights and no GPU.

    `--recipe` names a training run to estimate, as in `whyrank train`; more arguments change single settings.

    Examples:
      whyrank memory --model smollm2
      whyrank memory --recipe paper_llama --gpu-memory-gib 80
      whyrank memory --model path/to/llama --precision bf16 --max-length 2048 --num-gpus 4 \\
        --gpu-memory-gib 80
      whyrank memory --model path/to/llama --precision bf16 --max-length 2048 --lora-rank 16 \\
        --gradient-checkpointing --gpu-memory-gib 24
    """

    model: str
    """`minilm`, `smollm2`, a folder with a `config.json`, or a Hugging Face name."""
    num_gpus: int = 1
    """GPUs of one machine, each with a worker."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU; also says which stages fit into 90 % of it, as the rest goes to CUDA and buffers."""
    num_layers: int | None = None
    """Keep only the first layers of the model."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of training."""
    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers; 0 trains all weights."""
    max_length: int = 256
    """Tokens of query and document together."""
    max_tokens_per_batch: int = 8192
    """Padded tokens of one forward and backward pass; at least one pair is in it."""
    gradient_checkpointing: bool = False
    """Recompute the layers' activations in the backward pass."""

    def __post_init__(self) -> None:
        check_setting(self.max_length >= 16, f"max_length must be at least 16, got {self.max_length}")
        check_setting(self.lora_rank >= 0, f"lora_rank must not be negative, got {self.lora_rank}")
        for name in ("num_gpus", "max_tokens_per_batch"):
            check_setting(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        check_setting(
            self.num_layers is None or self.num_layers >= 1,
            f"num_layers must be at least 1, got {self.num_layers}",
        )
        check_setting(
            self.gpu_memory_gib is None or self.gpu_memory_gib > 0,
            f"gpu_memory_gib must be positive, got {self.gpu_memory_gib}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySftConfig(StageConfig):
    """Supervised fine-tuning on the better order; the loss is on the answer alone."""

    noise_alpha: float = 5.0
    """NEFTune: in training, embeddings get uniform noise up to this / sqrt(tokens * width); 0 adds none."""

    def __post_init__(self) -> None:
        super(NoisySftConfig, self).__post_init__()
        check_setting(self.noise_alpha >= 0, f"noise_alpha must not be negative, got {self.noise_alpha}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RpoConfig(DpoConfig):
    """RPO: direct preference optimisation plus the likelihood of the better order."""

    nll_weight: float = 1.0
    """Weight of the better order's negative log-likelihood per token; 0 is plain DPO."""

    def __post_init__(self) -> None:
        super(RpoConfig, self).__post_init__()
        check_setting(self.nll_weight >= 0, f"nll_weight must not be negative, got {self.nll_weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerativeTrainJob:
    """Train a causal language model to write rankings: SFT, then DPO; writes one model folder per objective.

    Examples:
      whyrank train-generative --prepared runs/sample --output runs/writer
      whyrank train-generative --prepared runs/mine --output runs/llama-writer \\
        --model path/to/llama --lora-rank 16 --precision bf16 --max-length 2048
    """

    prepared: Path = field(metadata=PLACE)
    """Folder written by `whyrank prepare`."""
    output: Path = field(metadata=PLACE)
    """Folder that receives the models `sft/` and `dpo/`, logs and checkpoints."""
    fold: int = 0
    """Which fold of the prepared folder."""
    model: str = "smollm2"
    """`smollm2`, a model folder, or a Hugging Face name of a causal language model."""
    num_candidates: int = 10
    """Candidates per query, from the top of the first stage."""
    max_words: int = 30
    """Words of each document in the prompt; longer documents are cut, and counted."""
    max_length: int = 1024
    """Tokens of prompt and answer together; a longer query is refused, never cut."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of training."""
    objectives: tuple[GenerativeObjective, ...] = ("sft", "dpo")
    """The objectives in order; each starts from the one before."""
    sft: NoisySftConfig = NoisySftConfig(num_epochs=3)
    """Settings of SFT."""
    dpo: RpoConfig = RpoConfig(num_epochs=1, learning_rate=5e-6)
    """Settings of DPO."""
    queries_per_pass: int = 1
    """Queries in one forward pass of a worker; RPO averages the likelihood over all tokens of a pass."""
    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers; 0 trains all weights."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage; 0 is plain data parallelism under DeepSpeed."""
    num_workers: int = 2
    """Ray Train workers, each with a GPU where there are GPUs, else a CPU; a resumed job keeps the number."""
    max_failures: int = field(default=3, metadata=PLACE)
    """How often a failed worker group is restarted from its last checkpoint."""
    seed: int = 0
    """Seed of the rejected orders and of the data order."""
    address: str | None = field(default=None, metadata=PLACE)
    """Address of a running Ray cluster; none starts a local Ray and stops it again."""

    def __post_init__(self) -> None:
        for name in ("max_words", "max_length", "queries_per_pass", "num_workers"):
            check_setting(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lora_rank", "max_failures"):
            check_setting(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        check_setting(
            self.num_candidates >= 2, f"num_candidates must be at least 2, got {self.num_candidates}"
        )
        check_setting(
            self.objectives in {("sft",), ("dpo",), ("sft", "dpo")},
            f"objectives must be sft, dpo or both in this order, got {self.objectives}",
        )
