"""Tasks that are asked in a model's own chat template."""

import functools
import json
from typing import Any

import numpy as np
import pytest
from chat_templates import special_tokenizer
from small_model import SMALL, small_model
from tolerances import SIMPLE

import llmasos
from llmasos_jax.data.tokenizers.tokenizer import encode_marked
from llmasos_jax.errors import EvaluationError, GenerationError
from llmasos_jax.evals.metrics.scorer import Question, scorer_of
from llmasos_jax.evals.tasks.task import load_task
from llmasos_jax.format.manifest import Generation
from llmasos_jax.generate.model import Model

pytest.importorskip("llmasos_jax.data.chat.sandbox", reason="needs the extra `models`")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)
ROWS = [
    {"q": "ab", "options": ["x", "yes"], "right": 1},
    {"q": "cd", "options": ["no", "maybe"], "right": 0},
    {"q": "一", "options": ["u", "v"], "right": 0},
]
WRITE = {"kind": "generation", "prompt": "{q}?", "answer": "right", "max_length": 4, "chat": True}
CHOICE = {
    "kind": "choice",
    "prompt": "{q}?",
    "choices": "options",
    "answer": "right",
    "chat": True,
}


@functools.cache
def chatty() -> Model:
    plain = small_model(SMALL, generation=Generation(chat_template=TEMPLATE))
    return Model(plain.manifest, plain._weights, special_tokenizer())


def task(tmp_path: Any, keys: dict[str, Any]) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return {"name": "t", "data": {"file": str(path)}, **keys}


def test_a_text_is_what_chat_answers(tmp_path):
    found = llmasos.evaluate(chatty(), task(tmp_path, WRITE | {"system": "S"}))
    for row, record in zip(ROWS, found.records, strict=True):
        messages = [
            {"role": "system", "content": "S"},
            {"role": "user", "content": row["q"] + "?"},
        ]
        assert record["prompt"] == f"<s>sS<|im_end|>u{row['q']}?<|im_end|>a"
        assert record["text"] == chatty().chat(messages, max_length=4, temperature=0.0)


def test_choices_follow_the_template_without_a_space(tmp_path):
    found = llmasos.evaluate(chatty(), task(tmp_path, CHOICE))
    scorer, tokenizer = scorer_of(chatty()), chatty()._require_tokenizer()
    for row, record in zip(ROWS, found.records, strict=True):
        before = encode_marked(tokenizer, f"<s>u{row['q']}?<|im_end|>a")
        assert before[0] == 256 and 258 in before  # marks, no letters
        after = [encode_marked(tokenizer, text) for text in row["options"]]
        (scores,) = scorer.score([Question(before, after)])
        np.testing.assert_allclose(
            record["logprobs"], [one.total for one in scores], rtol=SIMPLE, atol=SIMPLE
        )
        assert record["continuations"] == row["options"]


def test_shown_examples_are_turns(tmp_path):
    found = llmasos.evaluate(chatty(), task(tmp_path, CHOICE | {"fewshot": {"num": 1}}))
    for row, record in zip(ROWS, found.records, strict=True):
        shown = ROWS[record["shown"][0]]
        right = shown["options"][shown["right"]]
        own = f"u{row['q']}?<|im_end|>a"
        assert record["prompt"] == f"<s>u{shown['q']}?<|im_end|>a{right}<|im_end|>{own}"


def test_the_template_is_among_the_settings(tmp_path):
    assert llmasos.evaluate(chatty(), task(tmp_path, WRITE)).settings["chat_template"] == TEMPLATE


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "perplexity", "prompt": "{q}", "chat": True}, "perplexity task has chat"),
        ({**WRITE, "chat": False, "system": "S"}, "system='S' is a message of a conversation"),
        ({**WRITE, "chat": 1}, "chat=1 is a int, expected bool"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, keys, message):
    with pytest.raises(EvaluationError, match=message):
        load_task(task(tmp_path, keys))


def test_a_model_without_a_template_is_refused(tmp_path):
    with pytest.raises(GenerationError, match='model "small" has no chat template'):
        llmasos.evaluate(small_model(SMALL), task(tmp_path, WRITE))


def test_a_task_that_is_no_conversation_keeps_its_hash():
    keys = {"name": "t", "kind": "generation", "data": {"file": "x"}, "prompt": "{q}"}
    plain, chat = load_task(keys), load_task({**keys, "chat": True})
    # Written down by a release that did not know the key.
    assert plain.fingerprint(ROWS).startswith("cd1958a779e2b4b0")
    assert chat.fingerprint(ROWS) != plain.fingerprint(ROWS)
