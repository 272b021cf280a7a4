"""Which text of a template is learned: never a header, whatever the template asks or writes."""

from typing import Any

import pytest
from chat_templates import TEMPLATES, special_tokenizer

from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.data.chat.spans import write
from llmasos_jax.data.records.encode import encode_dialogues
from llmasos_jax.data.records.shapes import Dialogue
from llmasos_jax.errors import DataError

sandbox = pytest.importorskip("llmasos_jax.data.chat.sandbox", reason="needs the extra `models`")
MARKS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
HEADER = "<|im_start|>assistant\n"
LOOP = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + END + '\n'}}"
    "{% endfor %}"
)
CHATML, ENDLESS = LOOP.replace("END", "'<|im_end|>'"), LOOP.replace("END", "''")
ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TAGGED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | upper }}</s>{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}"
)
MOVING = (  # the system's message stands in the last turn of the user, and a prompt is asked for
    "{% set more = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'user' and loop.revindex < 3 %}{{ more }}{% endif %}"
    "{{ m.content }}<|im_end|>\n"
    "{% endfor %}" + ASKED
)
TEMPLATES_SAID: dict[str, str] = {
    "asks nothing, writes no prompt": CHATML,
    "asks nothing, writes one always": CHATML + "{{ '<|im_start|>assistant\n' }}",
    "writes another end where no prompt is asked for": CHATML
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}</s>{% endif %}",
    "writes another end and never a prompt": CHATML
    + "{% if not add_generation_prompt %}</s>{% endif %}",
    "tags the answer and writes no prompt": CHATML.replace(
        "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}",
        "{{ '<|im_start|>' + m.role + '\n' }}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{{ '\n' }}",
    ),
    "moves a message": MOVING,
    "asks for a prompt": CHATML + ASKED,
}


def said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return ([] if system is None else [{"role": "system", "content": system}]) + turns


def learned(template: str, messages: list[dict[str, str]]) -> list[str]:
    found = write(template, messages, marks=MARKS, bos_token="<s>", eos_token="</s>")
    return [found.text[start:stop] for start, stop in found.spans]


@pytest.mark.parametrize("case", TEMPLATES_SAID)
def test_neither_the_header_before_nor_the_one_after_is_learned(case: str) -> None:
    template = TEMPLATES_SAID[case]
    assert "{% generation %}" in template or "tags" not in case
    assert learned(template, said("Hi", "Yes")) == ["Yes<|im_end|>"]
    two = said("Hi", "Yes", "Why?", " So <|im_end|>m", system="Be")
    assert learned(template, two) == ["Yes<|im_end|>", " So <|im_end|>m<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "pieces"),
    [
        # What begins a message ends none: it is not learned, or the template is refused.
        (ENDLESS + ASKED, ["Yes\n", "No\n"]),
        (ENDLESS + "{{ '<|im_start|>assistant\n' }}", None),
        (ENDLESS, None),
        # Where the text of a message is changed, nothing but the tags says where it stands.
        (TAGGED, ["YES</s>", "NO</s>"]),
        (TAGGED.replace("{% generation %}", "").replace("{% endgeneration %}", ""), None),
        # One pair of tags for two messages says nothing of either.
        ("{% generation %}{{ messages | map(attribute='role') | join }}{% endgeneration %}", None),
    ],
)
def test_no_end_and_no_place(template: str, pieces: list[str] | None) -> None:
    messages = said("Hi", "Yes", "Why?", "No")
    if pieces is not None:
        assert learned(template, messages) == pieces
        return
    with pytest.raises(DataError, match=r"^messages\[1\] (is followed|cannot be told).*; set fine"):
        learned(template, messages)


@pytest.mark.parametrize("system", [None, "Be"])
def test_the_space_of_an_answer_is_learned_where_a_prompt_ends_before_it(
    system: str | None,
) -> None:
    messages = said("Hi", "Yes", "Why?", "No", system=system)
    assert learned(TEMPLATES["mistral"], messages) == [" Yes</s>", " No</s>"]


@pytest.mark.parametrize(("prompt", "answer"), [("say ", "yes"), ("a:", " yes"), ("x\n", "\ny ")])
def test_a_prompt_and_an_answer_side_by_side(prompt: str, answer: str) -> None:
    template = (  # of docs/finetuning-data.md
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    )
    assert learned(template, said(prompt, answer)) == [answer + "</s>"]


def test_the_day_is_not_read_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(form: str) -> str:
        raise AssertionError(form)

    monkeypatch.setattr(sandbox, "_strftime_now", clock)
    guarded = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024"
        "{% endif %} " + CHATML
    )
    found = write(guarded, said("Hi", "Yes"), marks=MARKS)
    assert found.text.startswith("26 Jul 2024 <|im_start|>user")
    with pytest.raises(DataError) as error:
        dialogue = Dialogue(tuple(said("Hi", "Yes")), "a.jsonl:3")
        encode_dialogues([dialogue], special_tokenizer(), config("{{ strftime_now('%Y') }}" + LOOP))
    assert str(error.value) == (
        "a.jsonl:3: the chat template makes no prompt of these messages: it asks for the date "
        "(strftime_now); write the date into it; correct the messages, or set "
        "finetune.chat_template"
    )


def config(template: str) -> Config:
    finetune: dict[str, Any] = {"chat_template": template}
    return Config(ModelConfig(259, 8, 1), finetune=FinetuneConfig(**finetune))
