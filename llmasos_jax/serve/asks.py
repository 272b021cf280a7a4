"""From a request's body to what the engine is asked."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmasos_jax.engine.request import Ask, Constraint
from llmasos_jax.generate.chat import chat_ids
from llmasos_jax.generate.guide import Guide
from llmasos_jax.generate.guides import guides_of
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.sampling import Sampling
from llmasos_jax.serve.bodies import ChatRequest, CompletionRequest, Options, ResponseFormat
from llmasos_jax.serve.failures import RefusedError

if TYPE_CHECKING:
    from llmasos_jax.serve.options import ServeOptions

# What OpenAI's completions take if a request does not say; an answer may fill the context.
COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Job:
    """The texts of one request.

    Attributes:
      asks: one for each text; sample j of prompt i is text i n + j.
      heads: what stands before each of them in the answer: the prompt, if it is echoed.
      num_samples: texts of each prompt.
      seed: of all.
      streams: whether pieces are sent as they come.
      tells_usage: whether a stream ends with the tokens that it took.
    """

    asks: list[Ask]
    heads: list[str]
    num_samples: int
    seed: int
    streams: bool
    tells_usage: bool


def completion_job(
    body: CompletionRequest, model: Model, context: int, options: ServeOptions
) -> Job:
    """The texts of a completion.

    Raises:
      RefusedError: a field has a value that cannot be.
      GenerationError: the same, said by who knows.
    """
    prompts = _prompts(body, model)
    asked = body.max_tokens or min(COMPLETION_TOKENS, options.max_tokens or context, context)
    max_tokens = _max_tokens(asked, "max_tokens", context, options)
    heads = [""] * len(prompts)
    if body.echo:
        if body.logprobs is not None:
            raise RefusedError(
                400,
                "log-probabilities are told of drawn tokens only: leave out echo, or logprobs",
                param="echo",
            )
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        heads = [
            t if isinstance(t, str) else model.decode(ids)
            for t, ids in zip(texts, prompts, strict=False)
        ]
        if isinstance(texts[0], int):
            heads = [model.decode(prompts[0])]
    return _job(body, model, prompts, heads, max_tokens, body.logprobs, options)


def chat_job(body: ChatRequest, model: Model, context: int, options: ServeOptions) -> Job:
    """The answers to a conversation.

    Raises:
      RefusedError: a field has a value that cannot be.
      GenerationError: the same, said by who knows.
    """
    messages = [
        {
            "role": message.role,
            "content": message.content
            if isinstance(message.content, str)
            else "".join(part.text for part in message.content),
        }
        for message in body.messages
    ]
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise RefusedError(400, "the model has no tokenizer")
    ids = chat_ids(model.chat_template(), messages, tokenizer, model.manifest.name)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RefusedError(
            400,
            "max_tokens and max_completion_tokens say the same; give one of them",
            param="max_tokens",
        )
    name = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
    asked = (
        body.max_tokens or body.max_completion_tokens or min(options.max_tokens or context, context)
    )
    max_tokens = _max_tokens(asked, name, context, options)
    if body.top_logprobs is not None and not body.logprobs:
        raise RefusedError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _job(body, model, [ids], [""], max_tokens, num_logprobs, options)


def _job(
    body: CompletionRequest | ChatRequest,
    model: Model,
    prompts: list[list[int]],
    heads: list[str],
    max_tokens: int,
    num_logprobs: int | None,
    options: ServeOptions,
) -> Job:
    num_samples = body.n or 1
    num = len(prompts) * num_samples
    if num > options.max_texts:
        raise RefusedError(
            400,
            f"{len(prompts)} prompts with {num_samples} samples each are {num} texts; one request "
            f"may ask for {options.max_texts}",
            param="n",
        )
    seed = secrets.randbits(32) if body.seed is None else body.seed
    stop = (
        ()
        if body.stop is None
        else (body.stop,)
        if isinstance(body.stop, str)
        else tuple(body.stop)
    )
    plain = _sampling(body, seed, model)
    asks = []
    for ids in prompts:
        for _ in range(num_samples):
            asks.append(
                Ask(
                    tuple(ids),
                    max_tokens,
                    plain.at_index(len(asks)),
                    stop=(*stop, *model.manifest.generation.stop),
                    num_logprobs=num_logprobs,
                    constraint=_constraint(body, model, ids),
                    batch_size=body.batch_size,
                )
            )
    told = body.stream_options is not None and body.stream_options.include_usage
    heads = [head for head in heads for _ in range(num_samples)]
    return Job(asks, heads, num_samples, seed, bool(body.stream), told)


def _prompts(body: CompletionRequest, model: Model) -> list[list[int]]:
    """The ids of each prompt."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [model.encode(prompt)]
    if isinstance(prompt[0], int):
        prompts = [[int(i) for i in prompt if isinstance(i, int)]]
    else:
        prompts = [
            model.encode(p) if isinstance(p, str) else list(p)
            for p in prompt
            if not isinstance(p, int)
        ]
    most = model.config.vocab_size
    for number, ids in enumerate(prompts):
        if not ids:
            raise RefusedError(400, f"prompt {number} has no tokens", param="prompt")
        if max(ids) >= most:
            raise RefusedError(
                400,
                f"prompt {number} has the id {max(ids)}; the model's are 0 to {most - 1}",
                param="prompt",
            )
    return prompts


def _max_tokens(asked: int, name: str, context: int, options: ServeOptions) -> int:
    most = min(options.max_tokens or context, context)
    if asked > most:
        raise RefusedError(
            400, f"{name}={asked} is more than the {most} that this server allows", param=name
        )
    return asked


def _sampling(body: Options, seed: int, model: Model) -> Sampling:
    biases = []
    for token, bias in (body.logit_bias or {}).items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise RefusedError(
                400,
                f'logit_bias has "{token[:40]}"; its keys are ids of tokens',
                param="logit_bias",
            )
        biases.append((int(token), bias))
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=tuple(biases),
        seed=seed,
    )
    sampling.require_ids(model.num_ids)
    return sampling


def _constraint(
    body: CompletionRequest | ChatRequest, model: Model, ids: list[int]
) -> Constraint | None:
    """A state of its own for each text."""
    asked = {
        "response_format": _format_guide(body.response_format),
        "regex": None if body.regex is None else Guide.regex(body.regex),
        "choice": None if body.choice is None else Guide.choice(body.choice),
    }
    given = [name for name, guide in asked.items() if guide is not None]
    if len(given) > 1:
        raise RefusedError(
            400, f"{' and '.join(given)} cannot both hold; give one of them", param=given[1]
        )
    guide = asked[given[0]] if given else None
    return None if guide is None else guides_of(model).start(guide, ids)


def _format_guide(form: ResponseFormat | None) -> Guide | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Guide.json_object()
    if form.json_schema is None:
        raise RefusedError(
            400,
            "a response_format of type json_schema needs json_schema",
            param="response_format.json_schema",
        )
    return Guide.json_schema(form.json_schema.schema_)
