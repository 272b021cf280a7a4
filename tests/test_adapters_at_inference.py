"""Several adapters beside one model's weights: what each gives, and that no choice compiles."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_hf import Json, write
from small_model import SMALL, small_model
from tolerances import SIMPLE
from tuned_runs import tuned

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError, GenerationError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.adapters import rows_of
from llmasos_jax.generate.load import init_model, load_model
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.request import make_requests, read_options

TOKENS = np.random.default_rng(0).integers(0, SMALL.vocab_size, (2, 11))
PROMPTS = ["Hello", "x", "The world is"]  # each in the smallest bucket
# Ranks, targets and kinds differ: what runs is their union.
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "targets": ("attn.q", "mlp.*")},
    "rslora": {"rank": 4, "rank_stabilized": True, "alpha": 3.0},
    "dora": {"rank": 2, "dora": True, "targets": ("attn.*", "*.down")},
}

GPT2: Json = {
    **{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 24},
    **{"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "n_inner": 24},
    **{"bos_token_id": None, "eos_token_id": None},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a run of each kind on it."""
    folder = tmp_path_factory.mktemp("adapters")
    small_model().save(folder / "base")
    for kind, options in KINDS.items():
        template = f"{kind}: {{{{ messages[0].content }}}}"
        tuned(folder / kind, folder / "base", chat_template=template, **options)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder / "base", adapters={kind: folder / kind for kind in KINDS})


@pytest.fixture(scope="module")
def plain(folder: Path) -> Model:
    return load_model(folder / "base")


@pytest.fixture(scope="module")
def merged(folder: Path, model: Model) -> Iterator[dict[str, Model]]:
    """Each run as a model of its own, and programs that all of them share."""
    found = {}
    for kind in KINDS:
        loaded = load_model(folder / kind)
        found[kind] = Model(loaded.manifest, loaded._weights, model.tokenizer)
        first = next(iter(found.values()))
        found[kind].__dict__["session"] = first.session.on(loaded._weights.params)
        found[kind].__dict__["_forward"] = first._forward.on(loaded._weights)
    yield found


def drawn(model: Model, adapter: str | None = None, num: int = 16) -> list[list[int]]:
    """The tokens that are likeliest, of each prompt."""
    assert model.tokenizer is not None
    options = read_options(num, temperature=0.0)
    requests = make_requests(PROMPTS, options, model.tokenizer, model.manifest)
    run = model._session_with(adapter).start(requests)
    run.advance(num)
    return run.new_ids()


@pytest.mark.parametrize("kind", KINDS)
def test_beside_the_weights_it_computes_what_it_does_merged(
    kind: str, model: Model, plain: Model, merged: dict[str, Model]
) -> None:
    found, wanted = (
        np.asarray(x) for x in (model.logits(TOKENS, adapter=kind), merged[kind].logits(TOKENS))
    )
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=SIMPLE, atol=SIMPLE * size)
    assert np.abs(found - np.asarray(plain.logits(TOKENS))).max() > 0.05 * size
    assert drawn(model, kind) == drawn(merged[kind])
    states = zip(
        model.hidden_states(TOKENS, adapter=kind), merged[kind].hidden_states(TOKENS), strict=True
    )
    for one, other in states:
        np.testing.assert_allclose(one, other, rtol=SIMPLE, atol=SIMPLE * np.abs(other).max())


def test_without_one_it_is_the_model_bit_for_bit(model: Model, plain: Model) -> None:
    model.logits(TOKENS, adapter="dora")  # leaves nothing behind
    np.testing.assert_array_equal(model.logits(TOKENS), plain.logits(TOKENS))
    assert drawn(model) == drawn(plain)
    options: dict[str, Any] = {"max_length": 12, "seed": 3}
    assert model.generate_text(PROMPTS, **options) == plain.generate_text(PROMPTS, **options)
    assert model.num_parameters == plain.num_parameters
    assert "adapters lora, rslora, dora" in repr(model) and "adapters" not in repr(plain)


def test_the_base_is_held_once(model: Model) -> None:
    own = model._weights.params
    for kind in KINDS:
        params = model._adapted[kind].weights.params
        for name in ("attn", "mlp"):
            for key, array in own["prefix"]["0"][name].items():
                assert params["prefix"]["0"][name][key] is array
        assert params["embed"]["table"] is own["embed"]["table"]


def test_another_adapter_compiles_nothing(model: Model, compiles: Any) -> None:
    options: dict[str, Any] = {"max_length": 16, "temperature": 0.0}
    first = model.generate_text(PROMPTS[0], adapter="lora", **options)
    model.logits(TOKENS, adapter="lora")
    num = model._session_beside.num_compiled
    compiles.reset()
    texts = {kind: model.generate_text(PROMPTS[0], adapter=kind, **options) for kind in KINDS}
    for kind in KINDS:
        model.logits(TOKENS, adapter=kind)
    assert compiles.count == 0 and model._session_beside.num_compiled == num
    assert texts["lora"] == first and len(set(texts.values())) == len(KINDS)


def test_each_prompt_may_have_its_own(model: Model) -> None:
    options: dict[str, Any] = {"max_length": 16, "seed": 5}
    alone = {
        kind: model.generate_text(["a"] * 4, adapter=kind, **options)
        for kind in (None, "lora", "dora")
    }
    for names in (["lora", "dora", "lora", "lora"], [None, None, "dora", None]):
        texts = model.generate_text(["a"] * 4, adapter=names, **options)
        assert texts == [alone[name][i] for i, name in enumerate(names)]
        assert len(set(texts)) == 4
        pieces = ["", "", "", ""]
        for i, piece in model.generate_text(["a"] * 4, adapter=names, stream=True, **options):
            pieces[i] += piece
        assert pieces == texts
    assert rows_of(["b", None, "a", "b"], 4) == [("b", [0, 3]), (None, [1]), ("a", [2])]
    with pytest.raises(GenerationError, match="4 prompts and 2 adapters"):
        model.generate_text(["a"] * 4, adapter=["lora", "dora"])


def test_a_conversation_goes_through_the_adapters_template(model: Model, plain: Model) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    options: dict[str, Any] = {"max_length": 16, "seed": 1}
    wanted = model.generate_text("dora: Hi", adapter="dora", **options)
    assert model.chat(messages, adapter="dora", **options) == wanted
    for each in (model, plain):
        with pytest.raises(GenerationError, match="no chat template"):
            each.chat(messages)


def test_on_a_mesh_it_is_the_same(folder: Path, model: Model) -> None:
    mesh = jax.make_mesh((2,), ("tensor",), devices=jax.devices()[:2])
    cut = load_model(folder / "base", mesh=mesh, adapters={kind: folder / kind for kind in KINDS})
    leaves = cut._adapted["dora"].weights.params["prefix"]["0"]["attn"]["q_lora"]
    assert leaves["b"].sharding.shard_shape(leaves["b"].shape) == (4, 2, 12)
    for kind in ("lora", "dora"):
        wanted = np.asarray(model.logits(TOKENS, adapter=kind))
        found = np.asarray(cut.logits(TOKENS, adapter=kind))
        np.testing.assert_allclose(found, wanted, rtol=SIMPLE, atol=SIMPLE * np.abs(wanted).max())
    assert drawn(cut, "dora") == drawn(model, "dora")


def test_an_encoder_embeds_and_classifies_with_it(tmp_path: Path) -> None:
    labels = Classifier(("ham", "spam"))
    cfg = ModelConfig(
        260, 32, 1, num_heads=2, causal=False, head=None, norm_placement="post", pooler=True
    ).replace(classifier=labels)
    source = Manifest("base", cfg, tokenizer={"kind": "bytes"})
    init_model(source).save(tmp_path / "base")
    tuned(tmp_path / "run", tmp_path / "base", rank=2)
    model = load_model(tmp_path / "base", adapters={"spam": tmp_path / "run"})
    loaded = load_model(tmp_path / "run")
    merged = Model(loaded.manifest, loaded._weights, model.tokenizer)
    texts = ["one text", "another one"]
    wanted = merged.embed(texts)
    np.testing.assert_allclose(model.embed(texts, adapter="spam"), wanted, atol=SIMPLE)
    assert np.abs(model.embed(texts) - wanted).max() > 0.05
    # The run moved the classifier too, which the base has.
    found, given = model.classify("win!", adapter="spam"), model.classify("win!")
    for one, other in zip(found, merged.classify("win!"), strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=SIMPLE)
    assert abs(found[0].probability - given[0].probability) > SIMPLE


def test_peft_folder_beside_a_run_of_ours(tmp_path: Path) -> None:
    write(tmp_path / "base", GPT2)  # q, k and v are one Linear there
    tuned(tmp_path / "run", tmp_path / "base", rank=2, dora=True)
    other = tuned(tmp_path / "other", tmp_path / "base", rank=3, targets=("mlp.up",)).folder
    theirs = llmasos_jax.export(tmp_path / "run", "peft", tmp_path / "theirs", unproven=True).path
    adapters = {"ours": tmp_path / "run", "theirs": theirs, "other": other}
    model = load_model(tmp_path / "base", adapters=adapters)
    found = {kind: np.asarray(model.logits([[3, 1, 2]], adapter=kind)) for kind in adapters}
    merged = np.asarray(load_model(tmp_path / "run").logits([[3, 1, 2]]))
    size = np.abs(merged).max()
    for kind in ("ours", "theirs"):
        np.testing.assert_allclose(found[kind], merged, rtol=SIMPLE, atol=SIMPLE * size)
    assert np.abs(found["other"] - merged).max() > 0.05 * size
    write(tmp_path / "wider", {**GPT2, "n_inner": 32})
    with pytest.raises(FormatError, match="give the model that it was trained on"):
        load_model(tmp_path / "wider", adapters={"theirs": theirs})


def test_commands_take_one(
    folder: Path, model: Model, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = str(folder / "dora"), ["--max-length=16", "--temperature=0"]
    main(["generate", str(folder / "base"), "Hello", f"--adapter={run}", "--json", *options])
    said = json.loads(capsys.readouterr().out)
    wanted = model.generate_text("Hello", max_length=16, temperature=0.0, adapter="dora")
    assert said["adapter"] == run and said["texts"] == [wanted]
    beside = {run: model._adapted["dora"]}
    held = Model(model.manifest, model._weights, model.tokenizer, beside)
    held.__dict__["_session_beside"] = model._session_beside
    monkeypatch.setattr("llmasos_jax.generate.load.load_model", lambda *_, **given: held)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    main(["chat", str(folder / "base"), f"--adapter={run}", *options])
    messages = [{"role": "user", "content": "Hi"}]
    answer = model.chat(messages, max_length=16, temperature=0.0, adapter="dora")
    assert capsys.readouterr().out == answer + "\n"


def test_what_is_no_adapter_of_this_model_is_named(folder: Path, model: Model) -> None:
    def load(source: Path, base: Path = folder / "base") -> None:
        load_model(base, adapters={"it": source})

    with pytest.raises(GenerationError, match="'lara' is not one of .*lora, rslora, dora.*mean"):
        model.logits(TOKENS, adapter="lara")
    with pytest.raises(GenerationError, match="3 is not one of"):
        model.generate_text("a", adapter=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(GenerationError, match="loaded without any"):
        small_model().generate_text("a", adapter="lora", stream=True)
    with pytest.raises(GenerationError, match="adapters is a list"):
        load_model(folder / "base", adapters=[folder])  # pyright: ignore[reportArgumentType]
    with pytest.raises(GenerationError, match="adapters has 'a': 3"):
        load_model(folder / "base", adapters={"a": 3})  # pyright: ignore[reportArgumentType]
    with pytest.raises(FormatError, match="holds no adapter"):
        load(folder / "base")
    with pytest.raises(FormatError, match="holds no adapter"):
        load(folder / "nowhere")
    small_model(seed=1).save(folder / "other")
    with pytest.raises(FormatError, match=r"trained on .*base\" with the weights .*began with"):
        load(folder / "lora", folder / "other")
    small_model(SMALL.replace(norm_eps=1.0)).save(folder / "smoothed")
    with pytest.raises(FormatError, match=r"with parameters.norm_eps=.*, not 1.0.*began with"):
        load(folder / "lora", folder / "smoothed")
    tuned(folder / "int8", folder / "base", rank=1, quantize="int8")
    with pytest.raises(FormatError, match='finetune.quantize="int8".*load it by itself'):
        load(folder / "int8")
    tuned(folder / "full", folder / "base", method="full")
    with pytest.raises(FormatError, match=r"moved \(full\) them, no low-rank change"):
        load(folder / "full")
