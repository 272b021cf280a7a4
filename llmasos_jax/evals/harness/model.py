"""A model of ours as lm-evaluation-harness asks it: scores, whole texts, generation. No torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.metrics.scorer import Question, Scored, scorer_of
from llmasos_jax.evals.tasks.pairs import fitted
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.request import read_options, requests_of

MAX_NEW = 256  # what lm-eval writes where a task does not say
# What generate_until may be told, by lm-eval's names; another one is refused, not passed over.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_IGNORED = ("do_sample", "until", "max_gen_toks")


class LLMasOSLM(TemplateLM):
    """`--model llmasos --model_args pretrained=...`.

    Args:
      pretrained: what `load_model` reads, or a `Model`.
      dtype: as in `load_model`.
      max_length: tokens of the context; None is the model's.
      seed: of sampling.
      allow_code: as in `load_model`.
      revision: as in `load_model`.
      batch_size, max_batch_size, device: what lm-eval passes on; shapes are chosen by length here,
        and the device is JAX's.

    Raises:
      EvaluationError: the model predicts no text, or has no tokenizer.
    """

    def __init__(
        self,
        pretrained: Any,
        dtype: str | None = None,
        max_length: int | None = None,
        seed: int = 0,
        allow_code: bool = False,
        revision: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size, device
        self.model: Model = (
            pretrained
            if isinstance(pretrained, Model)
            else load_model(pretrained, dtype=dtype, allow_code=allow_code, revision=revision)
        )
        self._tokens, self._scorer = self.model._require_tokenizer(), scorer_of(self.model)
        most = self._scorer.context_length
        if max_length is not None and not 2 <= int(max_length) <= most:
            raise EvaluationError(f"max_length={max_length} is not possible; give 2 to {most}")
        self.max_length = most if max_length is None else int(max_length)
        self._seed = seed

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        found = self._tokens.eos_id
        found = next(iter(self.model.manifest.generation.eos_ids), None) if found is None else found
        if found is None:
            raise EvaluationError("the tokenizer has no end token; lm-eval needs one")
        return found

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the beginning token, else the end."""
        return self._tokens.bos_id if self._tokens.bos_id is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return self.model.manifest.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text; without the beginning token if `add_special_tokens` is False."""
        del kwargs
        ids = list(self._tokens.encode(string))
        if not self._tokens.adds_bos:
            return ids
        is_twice = ids[1:2] == [self._tokens.bos_id]
        return ids[1:] if add_special_tokens is False or is_twice else ids

    def _loglikelihood_tokens(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        del kwargs
        by_context: dict[tuple[int, ...], list[int]] = {}
        for place, (_, context, _) in enumerate(requests):
            by_context.setdefault(tuple(context), []).append(place)
        questions, owners = [], []
        for context, places in by_context.items():
            given = [requests[place][2] for place in places]
            if len({self._cut(context, ids) for ids in given}) == 1:
                questions.append(fitted(context, given, self.max_length)[0])
                owners.append(places)
            else:  # each is cut by its own length, as lm-eval's backends do it
                questions += [fitted(context, [ids], self.max_length)[0] for ids in given]
                owners += [[place] for place in places]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for index, scored in self._scorer.stream(questions):
            for place, one in zip(owners[index], scored, strict=True):
                found[place] = self._answer(requests[place][0], one)
        return found

    def _cut(self, context: Sequence[int], ids: Sequence[int]) -> int:
        return max(len(context) + len(ids) - 1 - self.max_length, 0)

    def _answer(self, request: Any, scored: Scored) -> tuple[float, bool]:
        answer = (scored.total, scored.is_greedy)
        if request is not None:
            self.cache_hook.add_partial("loglikelihood", request, answer)
        return answer

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts, in windows that do not overlap."""
        del disable_tqdm
        windows, owners = [], []
        for owner, (text,) in enumerate(request.args for request in requests):
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, scored in map(utils.make_disjoint_window, pairs):
                windows.append(Question(context, [scored]))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (scored,) in zip(owners, self._scorer.score(windows), strict=True):
            totals[owner] += scored.total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts, each up to a stop string; requests with equal options are written together."""
        del disable_tqdm
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        texts = [""] * len(requests)
        for places in groups.values():
            prompts = [requests[place].args[0] for place in places]
            for place, text in zip(
                places, self._write(prompts, requests[places[0]].args[1], places), strict=True
            ):
                texts[place] = text
                self.cache_hook.add_partial("generate_until", requests[place].args, text)
        return texts

    def _write(
        self, prompts: Sequence[str], given: Mapping[str, Any], places: Sequence[int]
    ) -> list[str]:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), MAX_NEW))
        for name in kwargs:
            if name not in (*_SAMPLING, *_IGNORED):
                raise EvaluationError(
                    f"generate_until was given {name}={kwargs[name]!r}, which is not known "
                    f"here; it takes {', '.join((*_SAMPLING, 'max_gen_toks', 'until'))}"
                )
        num = kwargs["max_gen_toks"]
        if num >= self.max_length:
            raise EvaluationError(
                f"max_gen_toks={num} leaves no room for a prompt in {self.max_length} tokens"
            )
        options = read_options(
            num,
            stop=[text for text in kwargs["until"] if text] or None,
            seed=self._seed,
            **{name: kwargs[name] for name in _SAMPLING if name in kwargs},
        )
        most = self.max_length - num
        ids = [(self.tok_encode(prompt) or [self.prefix_token_id])[-most:] for prompt in prompts]
        requests = [
            dataclasses.replace(request, sampling=options.sampling.at_index(place))
            for place, request in zip(
                places, requests_of(ids, options, self.max_length), strict=True
            )
        ]
        texts = [""] * len(prompts)
        for place, piece in self.model._write(requests, options):
            texts[place] += piece
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Refused: the markers of a template are ids here, never text that anybody can write."""
        del chat_history, add_generation_prompt
        raise EvaluationError(
            "--apply_chat_template is not possible with llmasos in this version; leave it out"
        )
