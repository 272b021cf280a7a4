"""What requests and answers look like; the OpenAPI description is made of these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, StringConstraints

MOST_STOPS = 16
MOST_SAMPLES = 16

# One text of at least one character that is no lone surrogate.
Text = Annotated[str, StringConstraints(min_length=1)]


def _whole(value: Any) -> Any:
    """In JSON 5.0 is an integer too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
TokenId = Annotated[int, Field(ge=0, lt=2**31), WHOLE]
Texts = Annotated[list[Text], Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1)]


class Body(BaseModel):
    """A request: unknown fields are refused, never dropped."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Ignored(Body):
    """Fields of OpenAI's clients that make no difference here."""

    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool = False


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema for "not these two fields at once", each with the values that count."""
    fields = {**first, **second}
    return {"not": {"required": [*fields], "properties": fields}}


_TEXT, _LIST, _NUMBER = {"type": "string"}, {"type": "array"}, {"type": "integer"}
_JSON = {"type": "object", "properties": {"type": {"enum": ["json_object", "json_schema"]}}}
_ONE_GUIDE = [
    _both({"regex": _TEXT}, {"choice": _LIST}),
    _both({"regex": _TEXT}, {"response_format": _JSON}),
    _both({"choice": _LIST}, {"response_format": _JSON}),
]


def _rules(*rules: dict[str, Any]) -> ConfigDict:
    """What the description says of several fields together."""
    return ConfigDict(json_schema_extra={"allOf": [*_ONE_GUIDE, *rules]})


class Options(Ignored):
    """How texts are drawn, for both kinds of requests. `null` is the default."""

    model: str
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES), WHOLE] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32), WHOLE] | None = None
    temperature: Annotated[FiniteFloat, Field(ge=0, le=1000)] | None = None
    top_p: Annotated[FiniteFloat, Field(ge=1e-6, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, lt=2**31), WHOLE] | None = None
    min_p: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[FiniteFloat, Field(ge=1e-6, le=1)] | None = None
    repetition_penalty: Annotated[FiniteFloat, Field(ge=1e-3, le=1000)] | None = None
    presence_penalty: Annotated[FiniteFloat, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[FiniteFloat, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[FiniteFloat, Field(ge=-100, le=100)]] | None = None
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=1000)] | None = None
    batch_size: Annotated[int, Field(ge=1), WHOLE] | None = None


class CompletionRequest(Options):
    """A text to go on with."""

    model_config = _rules(_both({"echo": {"const": True}}, {"logprobs": _NUMBER}))
    prompt: Text | Texts | Ids | Annotated[list[Ids], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    response_format: ResponseFormat | None = None


class JsonSchema(Body):
    """A schema with a name."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer has to be."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "json_schema"}}},
            "then": {
                "required": ["json_schema"],
                "properties": {"json_schema": {"type": "object"}},
            },
        }
    )
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Part(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation.

    What templates do not read has to be null, as it is in answers that clients send back.
    """

    role: Text
    content: str | list[Part]
    name: None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class ChatRequest(Options):
    """A conversation to answer."""

    model_config = _rules(
        _both({"max_tokens": _NUMBER}, {"max_completion_tokens": _NUMBER}),
        {
            "if": {"required": ["top_logprobs"], "properties": {"top_logprobs": _NUMBER}},
            "then": {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
        },
    )
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    response_format: ResponseFormat | None = None


class EmbeddingRequest(Ignored):
    """Texts to embed."""

    model: str
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None


class Error(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The answer to a request that is not served."""

    error: Error


class CachedTokens(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities, in nats, of each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class Answer(BaseModel):
    """What all answers with texts have. `seed` writes the same again, in the same batch size."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    seed: int
    usage: Usage | None = None


class Completion(Answer):
    """Texts that go on with a prompt."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class TokenInfo(BaseModel):
    """A token and its log-probability, in nats."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(TokenInfo):
    """A token with the likeliest ones at its place."""

    top_logprobs: list[TokenInfo]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer."""

    content: list[ChatToken]
    refusal: None = None


class ChatMessage(BaseModel):
    """An answer, or a piece of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Answer):
    """Answers to a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Embedding(BaseModel):
    """One vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """Vectors in the order of their texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llmasos"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok", "draining", "failed"]


CompletionRequest.model_rebuild()
FIELDS = sorted(
    {*CompletionRequest.model_fields, *ChatRequest.model_fields, *EmbeddingRequest.model_fields}
)
