"""What is served, and how: the arguments of `build_app`, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Scale(_Settings):
    min_replicas: int = Field(1, ge=1, description="Replicas that are always there.")
    max_replicas: int = Field(1, ge=1, description="Replicas under load.")
    target_ongoing_requests: int = Field(
        8, ge=1, description="Requests of a replica that autoscaling aims at."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}"
            )
        return self


class ReplicaArgs(_Scale):
    """The replicas of one deployment."""

    num_cpus: float = Field(
        0.5,
        ge=0,
        description="CPUs that Ray counts for a replica. On a cluster its model, if it holds one, has as many"
        " threads (rounded down, at least one) unless OMP_NUM_THREADS is set there.",
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs of a replica; a part of one shares it.")
    surge_percent: int = Field(
        100,
        ge=0,
        le=100,
        description="Share of the replicas that an upgrade may start before it ends old ones; 0 where"
        " there is no room for both.",
    )


class EngineArgs(_Scale):
    """The replicas of a vLLM engine."""

    num_gpus: int = Field(0, ge=0, description="GPUs of a replica, used in parallel; without any, CPUs.")


class ServeArgs(_Settings):
    """What `build_app` takes, from a Serve config file or the command line."""

    artefact: Path = Field(description="Reranker artefact written by `whyrank train`.")
    name: str | None = Field(None, description="Name of the served model; without it that of the folder.")
    keys: Path | None = Field(None, description="File of API keys, written by `whyrank key`.")
    auth: bool = Field(True, description="Answer without a key only where no other machine can connect.")
    long_documents: Literal["truncate", "max_chunk"] = Field(
        "max_chunk",
        description="A document that does not fit next to its query is cut, or read in chunks and has the"
        " score of the best one.",
    )
    max_tokens_per_batch: int = Field(8192, ge=64, description="Padded tokens in one call of the model.")
    max_pending_tokens: int = Field(
        200_000, ge=1, description="Tokens that one gateway works on or lets wait; more is refused at once."
    )
    max_pending_attribution_tokens: int = Field(
        1_000_000,
        ge=1,
        description="Tokens of masked texts that one gateway lets be attributed or wait; beyond it rankings"
        " come without words.",
    )
    max_pending_chat_tokens: int = Field(
        5_000,
        ge=1,
        description="Tokens of conversations and replies that one gateway admits; more is refused at once. By"
        " default half of what an engine on CPUs holds, so that explanations have room beside them.",
    )
    max_documents: int = Field(1000, ge=1, description="Documents in one request.")
    max_body_bytes: int = Field(4_194_304, ge=1024, description="Size of a request's body.")
    requests_per_minute: int = Field(6000, ge=1, description="Of one key, at one gateway.")
    max_concurrent_requests: int = Field(256, ge=1, description="Of one key, at one gateway.")
    receive_timeout_s: float = Field(10.0, gt=0, description="Time for a request's body to arrive.")
    answer_timeout_s: float = Field(60.0, gt=0, description="Time for an answer.")
    explainer: str | None = Field(
        None,
        description="Language model that writes the texts: a name (`smollm2`) or a folder. Without one a"
        " template writes them.",
    )
    explainer_lora: Path | None = Field(
        None,
        description="Folder of a LoRA adapter for the explainer, as PEFT writes it (safetensors alone); it is"
        " merged into a copy of the weights.",
    )
    chat: bool = Field(
        False, description="Answer OpenAI's chat completions too, with the explainer and its sampling."
    )
    corpus: Path | None = Field(
        None,
        description="Folder with a corpus.jsonl or .parquet: requests may then come without documents, and"
        " have theirs retrieved from it by BM25.",
    )
    max_explained: int = Field(10, ge=1, description="Results that one request may have explained.")
    max_evals: int = Field(300, ge=2, description="Evaluations of the model for one document's attribution.")
    attribution_timeout_s: float = Field(
        20.0, gt=0, description="Time for refined attributions; without them the coarse ones are the answer."
    )
    explanation_timeout_s: float = Field(
        30.0, gt=0, description="Time for a text; without one the template's is the answer."
    )
    max_model_tokens: int = Field(2048, ge=256, description="Context of the explainer.")
    max_new_tokens: int = Field(160, ge=16, description="Tokens that the explainer may write.")
    gateway: ReplicaArgs = Field(ReplicaArgs(), description="Replicas that speak HTTP.")
    reranker: ReplicaArgs = Field(ReplicaArgs(num_cpus=1.0), description="Replicas that hold the model.")

    attributor: ReplicaArgs = Field(ReplicaArgs(num_cpus=1.0), description="Replicas that attribute.")
    retriever: ReplicaArgs = Field(ReplicaArgs(), description="Replicas that search the corpus.")
    text_server: EngineArgs = Field(EngineArgs(), description="Replicas of the explainer's engine.")

    @model_validator(mode="after")
    def _check(self) -> ServeArgs:
        if (self.keys is None) == self.auth:
            raise ValueError(
                "give either keys (a file that `whyrank key --keys FILE --name NAME` writes), or auth=false"
                " (--no-auth)"
            )
        if self.explainer is None and (self.chat or self.explainer_lora is not None):
            raise ValueError(
                "chat and explainer_lora are the explainer's: give one (--explainer), or leave them out"
            )
        if self.chat and self.explainer_name == self.model_name:
            raise ValueError(
                f"the reranker and the model that chats would both be called {self.model_name!r}: give the"
                " reranker another name (--name)"
            )
        if self.answer_timeout_s <= self.attribution_timeout_s + self.explanation_timeout_s:
            raise ValueError(
                f"answer_timeout_s {self.answer_timeout_s:g} must be more than attribution_timeout_s and"
                " explanation_timeout_s together, which come one after the other"
            )
        return self

    @property
    def model_name(self) -> str:
        """The name that clients ask for."""
        return self.name or self.artefact.resolve().name

    @property
    def explainer_name(self) -> str:
        """The name of who writes texts, of folders their last part; with an adapter also the adapter's."""
        if self.explainer is None:
            return "template"
        folder = Path(self.explainer)
        name = folder.resolve().name if folder.is_dir() else self.explainer
        lora = self.explainer_lora
        return name if lora is None else f"{name}+{lora.resolve().name}"


class ServeCommand(ServeArgs):
    """Serve an artefact on this machine: rerank and score over HTTP, until it is interrupted.

    Examples:
      whyrank serve --artefact runs/minilm/dpo --no-auth
      whyrank key --keys keys.json --name team-a
      whyrank serve --artefact runs/minilm/dpo --keys keys.json --port 8080 --reranker.max-replicas 2
    """

    host: str = Field("127.0.0.1", description="Address that HTTP is answered at.")
    port: int = Field(8000, ge=1, le=65535, description="Port that HTTP is answered at.")
    address: str | None = Field(
        None, description="Address of a running Ray cluster; none starts a local Ray and stops it again."
    )
    haproxy: bool = Field(
        False, description="HAProxy answers in place of Ray's own proxy: sooner, on a local Ray alone."
    )

    @model_validator(mode="after")
    def _check_host(self) -> ServeCommand:
        if self.haproxy and self.address is not None:
            raise ValueError(
                "--haproxy is for a local Ray: a cluster's proxies are those it was started with"
            )
        if not self.auth and self.host not in LOOPBACK:
            raise ValueError(f"--no-auth is for loopback alone, not for host {self.host}; give --keys")
        return self


class KeyCommand(_Settings):
    """Make, rotate or revoke API keys; a running server notices within a second.

    Examples:
      whyrank key --keys keys.json --name team-a                       # prints a new key, once
      whyrank key --keys keys.json --name team-a --action revoke-oldest   # after the new one is in use
      whyrank key --keys keys.json --name team-a --action revoke
    """

    keys: Path = Field(description="File of keys; it holds their digests alone.")
    name: str = Field(min_length=1, max_length=100, description="Whose key it is.")
    action: Literal["add", "revoke-oldest", "revoke"] = Field(
        "add", description="Add a key; take the oldest one of this name away; take all of this name away."
    )
