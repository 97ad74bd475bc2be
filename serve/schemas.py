"""What requests and answers of the API look like; the OpenAPI document is made of these models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Scale = Literal["logit", "sigmoid", "calibrated"]

MAX_TOKENS = 1_000_000
"""A limit on tokens that is higher than this is none."""


class _Request(BaseModel):
    """Clients send fields that others know; they are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class DocumentObject(BaseModel):
    """A document as an object: its text, a title where it has one, and what else the caller keeps there."""

    model_config = ConfigDict(extra="allow", frozen=True)

    text: str
    title: str = ""


Texts = Annotated[
    list[str | DocumentObject] | str,
    Field(
        description="Texts or objects with a `text`, in any mixture, or one text.",
        examples=[["Ice.", "Sand."]],
    ),
]


class ScoredRequest(_Request):
    """What all requests that are answered by scores have in common."""

    model: str | None = Field(None, description="The served model; its name is in `GET /v1/models`.")
    max_tokens_per_query: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description="The query is cut behind so many tokens; 0 or null: the model's limit.",
    )
    max_tokens_per_doc: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description="A document is cut behind so many tokens; 0 or null: it is not.",
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=MAX_TOKENS,
        description="Tokens of query, document and template together; −1, 0 or null: the model's limit.",
    )
    raw_scores: bool = Field(False, description="Logits instead of what `scale` says.")
    use_activation: bool = Field(True, description="False asks for logits, as `raw_scores` does.")
    scale: Scale | None = Field(
        None,
        description="Of the scores: unbounded, their sigmoid, or as the artefact was calibrated. Without it"
        " the calibrated one where the artefact states it, else the sigmoid. `meta.scale` says which it was.",
    )


class ExplainOptions(BaseModel):
    """What is explained of the first results, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attributions: bool = Field(True, description="The words that caused each score, with their values.")
    text: bool = Field(False, description="A verified text; it takes the attributions with it.")
    top_k: int = Field(3, ge=1, le=1000, description="How many of the first results are explained.")
    skip: int = Field(0, ge=0, le=100_000, description="So many results are skipped before.")
    top_k_words: int = Field(10, ge=1, le=100, description="Words of a result that a text may cite.")
    contrast: bool = Field(False, description="Texts say why a result stands above the next one.")


class RerankRequest(ScoredRequest):
    """The body of Cohere's, Jina's and vLLM's clients."""

    query: str = Field(description="What the documents are ranked for.", examples=["sea ice thickness"])
    documents: Texts | None = Field(
        None,
        description="Texts or objects with a `text`, in any mixture, or one text. Without them, where the"
        " server has a corpus (`GET /v1/models`: `has_corpus`), it retrieves some.",
        examples=[["Ice.", "Sand."]],
    )
    num_candidates: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Without `documents`: so many are retrieved at most; null: 50, or the server's limit.",
    )
    top_n: int | None = Field(None, ge=0, description="So many results; null, 0 or more than there are: all.")
    return_documents: bool = Field(False, description="Each result then holds its document, as it was sent.")
    explain: ExplainOptions | None = Field(
        None, description="Explain the first results; each then holds an `explanation`."
    )


class AttributionSettings(BaseModel):
    """How values are found."""

    method: Literal["pruned", "partition", "exact"] = Field(
        "pruned", description="How values are found; `exact` is for short texts."
    )
    granularity: Literal["token", "word", "sentence", "field"] = Field(
        "token", description="What is switched on and off; values of tokens are summed into words."
    )
    budget: int | None = Field(
        None, ge=2, le=100_000, description="Evaluations of the model per document; the server has a limit."
    )
    target: str = Field(
        "score",
        pattern=r"^(score|margin(:[0-9]{1,6})?|rank|listwise)$",
        description="What is explained of a result. `score`: its score alone. `margin`: its margin over the"
        " next result, `margin:3`: over the document at position 3 of the request, from 0; that one's"
        " attribution comes along. `rank`: also the few words without which it would stand lower."
        " `listwise`: also the fewest such words that would change the order of the list.",
        examples=["score", "margin", "margin:0", "rank", "listwise"],
    )
    seed: int = Field(0, ge=0, le=2**32 - 1)


class ExplainRequest(RerankRequest, AttributionSettings):
    """A rerank request whose first results are explained, with the settings of the attribution."""

    explain: ExplainOptions = Field(ExplainOptions(), description="What is explained of the first results.")


class ScoreRequest(ScoredRequest):
    """One pair, one text with many, or as many with as many; the four ways in which vLLM's clients say so."""

    queries: list[str] | str | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: list[str] | str | None = None
    text_2: Texts | None = None
    data_1: list[str] | str | None = None
    data_2: Texts | None = None


class TeiRerankRequest(_Request):
    """The body of text-embeddings-inference's clients."""

    query: str = Field(examples=["sea ice thickness"])
    texts: list[str] = Field(examples=[["Ice.", "Sand."]])
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False


class UnitObject(BaseModel):
    """A word, or a longer part, at characters `start` to `end` of the text (or title) that was sent."""

    text: str
    start: int
    end: int
    field: Literal["title", "text"]
    value: float = Field(description="What it added to the score, as a logit.")


class AttributionObject(BaseModel):
    """Values that add up: `base_value + sum(values) + residual = score`, all logits."""

    score: float
    base_value: float
    units: list[UnitObject]
    residual: float
    method: str
    num_evals: int
    error: float | None = Field(None, description="Estimated bound on the error of the values, as a logit.")
    seed: int
    is_truncated: bool = Field(description="Only the part of the document that was read has units.")
    is_refined: bool = Field(description="False: there was no time for all evaluations that were asked for.")


class TextObject(BaseModel):
    """A text that agrees with the attribution, word for word."""

    text: str
    cited: list[str]
    effects: list[str] = Field(description="What the text says that each cited word did; empty: nothing.")
    is_fallback: bool = Field(description="The model's text was refused, or there was none: a template's.")
    problems: list[str] = Field(description="Why it was refused.")
    with_attribution: bool
    generator: str


class MarginObject(BaseModel):
    """How far a result stands above the next one, or the one that is asked for, and that one's words."""

    index: int = Field(description="The other document's position in the request.")
    margin: float = Field(description="The difference of the scores, in logits; below 0: it stands lower.")
    attribution: AttributionObject


class RankFlipObject(BaseModel):
    """The few words that hold a result at its rank: without them it stands lower, and with any one not."""

    units: list[UnitObject] = Field(
        description="Those words; empty: deleting the ten words that raised the score most does not lower the"
        " rank."
    )
    rank: int = Field(description="Where the result stands, from 1.")
    flipped_rank: int | None = Field(
        None, description="Where it would stand without the words, all other documents as they are."
    )
    score: float | None = Field(None, description="What it would score without the words, as a logit.")


class OrderFlipObject(BaseModel):
    """Of the rank flips that were found, the one of the fewest words: they would change the list's order."""

    index: int = Field(description="The position in the request of the document that has these words.")
    rank_flip: RankFlipObject


class ExplanationObject(BaseModel):
    """Why a result stands where it does."""

    attribution: AttributionObject | None = None
    above: MarginObject | None = None
    rank_flip: RankFlipObject | None = None
    text: TextObject | None = None


class FirstStageObject(BaseModel):
    """Where the retriever placed a document of the corpus: its rank, from 1, and its BM25 score."""

    rank: int
    score: float


class RerankResult(BaseModel):
    """One document at its place: `index` is its position in the request or among the retrieved, from 0."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None
    first_stage: FirstStageObject | None = Field(None, description="Of documents that were retrieved.")
    explanation: ExplanationObject | None = None


class Usage(BaseModel):
    """Tokens that the request cost, at most: a query that its documents share counts once for each."""

    prompt_tokens: int
    total_tokens: int


class ApiVersion(BaseModel):
    """The version of Cohere's API that the answer follows."""

    version: str = "2"


class BilledUnits(BaseModel):
    """What Cohere's clients read: one search."""

    search_units: int = 1


class Meta(BaseModel):
    """What an answer says of itself."""

    api_version: ApiVersion = ApiVersion()
    billed_units: BilledUnits = BilledUnits()
    scale: Scale
    model_digest: str = Field(description="SHA-256 of the artefact whose scores these are, all of them.")
    warnings: list[str] = []


class RerankResponse(BaseModel):
    """Results in descending order of their scores; equal scores stand in the order of the request."""

    id: str
    object: Literal["rerank"] = "rerank"
    created: int
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: Meta
    order_flip: OrderFlipObject | None = Field(
        None, description="With the target `listwise`: the fewest words that would change the order."
    )
    degraded: list[Literal["attributor", "explainer"]] | None = Field(
        None, description="Who could not do all that was asked for; the ranking is complete."
    )


class WordsEvent(BaseModel):
    """`attributions`: of each explained result by position; again when refined, and with rank flips."""

    is_refined: bool
    explanations: dict[int, ExplanationObject]
    order_flip: OrderFlipObject | None = None


class DraftEvent(BaseModel):
    """`draft`: further words of a text that is not verified as a whole yet; the `explanation` may differ."""

    index: int
    text: str


class TextEvent(BaseModel):
    """`explanation`: the text about a result."""

    index: int
    text: TextObject


class DoneEvent(BaseModel):
    """`done`: nothing more comes."""

    degraded: list[Literal["attributor", "explainer"]]


class ScoreResult(BaseModel):
    """The score of one pair; `index` counts the pairs from 0."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """Scores in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreResult]
    usage: Usage
    meta: Meta


class TeiResult(BaseModel):
    """One text at its place: `index` is its position in the request, from 0."""

    index: int
    score: float
    text: str | None = None


class ModelObject(BaseModel):
    """A model that this server answers with."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "whyrank"
    digest: str
    max_length: int = Field(description="Tokens of query, document and template that are read together.")
    scales: list[Scale]
    long_documents: str
    has_corpus: bool = Field(description="A request may come without documents: they are retrieved.")


class ChatModelObject(BaseModel):
    """The explainer's language model, where it may be asked by name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "whyrank"
    max_length: int = Field(description="Tokens of a conversation and its reply together.")


class ModelList(BaseModel):
    """The served models: the reranker, and behind it the language model where chat is enabled."""

    object: Literal["list"] = "list"
    data: list[ModelObject | ChatModelObject]


class ChatPart(_Request):
    """A part of a message; texts are understood."""

    type: Literal["text"]
    text: str


class ChatMessage(_Request):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[ChatPart]


class StreamOptions(_Request):
    """What a stream has beside the words."""

    include_usage: bool = Field(False, description="A last chunk without words says what it cost.")


class ChatRequest(_Request):
    """The body of OpenAI's clients; how the model samples is the server's business."""

    model: str | None = Field(None, description="The explainer; its name is in `GET /v1/models`.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1, description="Of the reply; the server has a limit.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of `max_tokens`.")
    stream: bool | None = Field(None, description="The reply comes as it is written.")
    stream_options: StreamOptions | None = None


class ChatReply(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """The one reply; `length` says that it ends at the limit of tokens."""

    index: Literal[0] = 0
    message: ChatReply
    finish_reason: str


class ChatUsage(BaseModel):
    """Tokens, as the model counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatResponse(BaseModel):
    """A reply to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


class ChatChunkChoice(BaseModel):
    """Further words of the one reply."""

    index: Literal[0] = 0
    delta: dict[Literal["role", "content"], str]
    finish_reason: str | None


class ChatChunk(BaseModel):
    """One event of a streamed reply."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: ChatUsage | None = None


class Health(BaseModel):
    """Ready: every golden pair of the artefact was scored again, and its score was the recorded one."""

    status: Literal["ready"] = "ready"


class Version(BaseModel):
    """The version of Whyrank."""

    version: str


class ErrorObject(BaseModel):
    """What went wrong, for people and for machines."""

    message: str
    type: str
    param: str | None
    code: str
    remedy: str


class ErrorResponse(BaseModel):
    """Every answer that is no success."""

    error: ErrorObject
