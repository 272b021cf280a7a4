"""T5 as transformers has it: states, logits, loss, gradients, greedy tokens, what is refused."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5_twins import CONFIGS, VOCAB, Twin, make
from tolerances import SIMPLE

import llmasos_jax
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary
from llmasos_jax.errors import FormatError
from llmasos_jax.format.names import flatten, unflatten
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.loop import Programs
from llmasos_jax.generate.sampling import Sampling
from llmasos_jax.generate.session import Request, Session
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.interop.hf.families import t5
from llmasos_jax.interop.tables import unbind
from llmasos_jax.models.definition import file_def
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.objective import build_objective

OPTIMIZED = True  # conftest.py: programs as users have them

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

SOURCE, TARGET = 30, 25  # past the last bucket's distance of most twins
LENGTHS, TARGET_LENGTHS = (30, 17, 4), (25, 9, 20)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    return {name: make(name, tmp_path_factory.mktemp(name)) for name in CONFIGS}


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Source and target ids with their masks; padding holds other ids, which must not matter."""
    rng = np.random.default_rng(0)
    rows = []
    for lengths, width in ((LENGTHS, SOURCE), (TARGET_LENGTHS, TARGET)):
        ids = rng.integers(2, VOCAB, (len(lengths), width))
        rows += [ids, (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)]
    return rows[0], rows[1], rows[2], rows[3]


def bound(folder: Path) -> Any:
    """The parameters as a tree, and the model bound to them inside a function."""
    files = open_hf(folder)
    definition = file_def(files.manifest.parameters)
    params = unflatten({n: jnp.asarray(t.read()) for n, t in files.tensors.items()})
    return files, definition, params


def close(ours: Any, theirs: Any, mask: np.ndarray | None = None, tolerance: float = SIMPLE):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    if mask is not None:
        ours, theirs = ours[mask > 0], theirs[mask > 0]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_states_and_logits_with_padding_in_both(name: str, twins: dict[str, Twin]) -> None:
    twin = twins[name]
    source, source_mask, target, target_mask = batch()
    with torch.no_grad():
        theirs = twin.model(
            input_ids=torch.from_numpy(source),
            attention_mask=torch.from_numpy(source_mask),
            decoder_input_ids=torch.from_numpy(target),
            decoder_attention_mask=torch.from_numpy(target_mask),
            output_hidden_states=True,
        )
    _, definition, params = bound(twin.folder)

    def run(params: Any) -> Any:
        model = definition.bind(params)
        encoded = model.encode(
            jnp.asarray(source, jnp.int32),
            segment_ids_bs=jnp.asarray(source_mask, jnp.int32),
            runtime=Runtime(),
            all_layers=True,
        )
        hidden = model.hidden(
            jnp.asarray(target, jnp.int32),
            segment_ids_bt=jnp.asarray(target_mask, jnp.int32),
            encoded=encoded,
            runtime=Runtime(),
            all_layers=True,
        )
        return encoded.layers, hidden.layers, model.logits(hidden.x_btd, Runtime())

    encoder, decoder, logits = jax.jit(run)(params)
    assert len(encoder) == 4 and len(decoder) == definition.cfg.num_layers + 1
    for ours, wanted in zip(encoder, theirs.encoder_hidden_states, strict=True):
        close(ours, wanted, source_mask)
    for ours, wanted in zip(decoder, theirs.decoder_hidden_states, strict=True):
        close(ours, wanted, target_mask)
    assert theirs.logits.std() > 0.5
    close(logits, theirs.logits, target_mask)


def test_the_usual_buckets_past_the_last_distance(tmp_path: Path) -> None:
    """32 buckets up to 128 tokens: where the logarithm is whole, rounding decides."""
    usual = dict(relative_attention_num_buckets=32, relative_attention_max_distance=128)
    twin = make("t5", tmp_path, **usual)
    rng = np.random.default_rng(1)
    source, target = rng.integers(2, VOCAB, (1, 300)), rng.integers(2, VOCAB, (1, 290))
    with torch.no_grad():
        theirs = twin.model(
            input_ids=torch.from_numpy(source), decoder_input_ids=torch.from_numpy(target)
        )
    _, definition, params = bound(tmp_path)
    model = definition.bind(params)
    encoded = model.encode(jnp.asarray(source, jnp.int32), runtime=Runtime())
    close(encoded.x_bsd, theirs.encoder_last_hidden_state)
    hidden = model.hidden(jnp.asarray(target, jnp.int32), encoded=encoded, runtime=Runtime())
    close(model.logits(hidden.x_btd, Runtime()), theirs.logits)


@pytest.mark.parametrize("name", ["t5", "t5-v1_1"])
def test_model_api(name: str, twins: dict[str, Twin]) -> None:
    source, source_mask, target, _ = batch()
    model = load_model(twins[name].folder)
    with torch.no_grad():
        theirs = twins[name].model(
            input_ids=torch.from_numpy(source),
            attention_mask=torch.from_numpy(source_mask),
            decoder_input_ids=torch.from_numpy(target),
            output_hidden_states=True,
        )
    close(model.logits(source, source_mask, decoder_ids=target), theirs.logits)
    states = model.hidden_states(source, source_mask)
    close(states[-1], theirs.encoder_last_hidden_state, source_mask)
    states = model.hidden_states(source, source_mask, decoder_ids=target)
    close(states[1], theirs.decoder_hidden_states[1])
    assert model.manifest.generation.decoder_start_id == 0
    assert model.manifest.generation.eos_ids == (1,)
    assert model.manifest.architecture == "T5"


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens(name: str, twins: dict[str, Twin]) -> None:
    """A batch of texts of different lengths, 32 tokens each."""
    source, source_mask, _, _ = batch()
    theirs = twins[name].model
    theirs.generation_config.eos_token_id = None  # 32 tokens of each, whatever they are
    with torch.no_grad():
        wanted = theirs.generate(
            torch.from_numpy(source * source_mask),
            attention_mask=torch.from_numpy(source_mask),
            max_new_tokens=32,
            do_sample=False,
            num_beams=1,
            use_cache=False,  # its cache has as many layers as the encoder
        )[:, 1:].numpy()
    model = load_model(twins[name].folder)
    session = session_of(model)
    greedy = Sampling(temperature=0.0)
    rows = [row[:n].tolist() for row, n in zip(source, LENGTHS, strict=True)]
    run = session.start([Request([0], 32, greedy, row) for row in rows])
    while not run.is_done:
        run.advance(32)
    np.testing.assert_array_equal(run.new_ids(), wanted)
    assert wanted.shape == (3, 32) and len(np.unique(wanted)) > 6


def session_of(model: Any) -> Any:
    """A session that no end of text ends."""
    weights = model._weights
    programs = Programs(weights.definition, weights.runtime, model.config.vocab_size)
    return Session(programs, weights.params, (), model.config.context_length)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_gives_every_tensor_back(name: str, twins: dict[str, Twin]) -> None:
    files, _, _ = bound(twins[name].folder)
    cfg = files.manifest.parameters
    back = unbind(t5._table(cfg), cfg, files.tensors)
    theirs = {n: p.detach().numpy() for n, p in twins[name].model.named_parameters()}
    assert back.keys() == theirs.keys()
    for part, tensor in back.items():
        np.testing.assert_array_equal(tensor.read(), theirs[part], strict=True)


@pytest.mark.parametrize("kind", ["T5EncoderModel", "MT5EncoderModel", "T5Model"])
def test_base_classes(kind: str, twins: dict[str, Twin], tmp_path: Path) -> None:
    name = "mt5" if kind.startswith("M") else "t5"
    model = getattr(transformers, kind).from_pretrained(twins[name].folder).eval()
    model.save_pretrained(tmp_path)
    source, source_mask, target, _ = batch()
    ours = load_model(tmp_path)
    ids, mask = torch.from_numpy(source), torch.from_numpy(source_mask)
    with torch.no_grad():
        wanted = twins[name].model.encoder(input_ids=ids, attention_mask=mask)
    close(ours.hidden_states(source, source_mask)[-1], wanted.last_hidden_state, source_mask)
    if kind == "T5Model":
        with torch.no_grad():
            whole = twins[name].model(input_ids=ids, decoder_input_ids=torch.from_numpy(target))
        close(ours.logits(source, decoder_ids=target), whole.logits)
    else:
        assert ours.config.head is None and not ours.config.causal


def test_an_encoder_taken_alone_leaves_the_decoder(twins: dict[str, Twin], tmp_path: Path) -> None:
    files = tmp_path / "whole"
    make("t5", files)
    config = json.loads((files / "config.json").read_text())
    (files / "config.json").write_text(json.dumps({**config, "architectures": ["T5EncoderModel"]}))
    assert open_hf(files).manifest.parameters.encoder.num_layers == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_export_is_proven_and_is_the_same_model(
    name: str, twins: dict[str, Twin], tmp_path: Path
) -> None:
    model = load_model(twins[name].folder)
    source = model.save(tmp_path / "ours")
    done = llmasos_jax.export(source, "hf", tmp_path / "theirs")
    assert done.proven and done.saved_class == type(twins[name].model).__name__
    kind = type(twins[name].model)
    theirs = kind.from_pretrained(tmp_path / "theirs").eval()
    weights = dict(theirs.named_parameters())
    for part, weight in twins[name].model.named_parameters():
        np.testing.assert_array_equal(weights[part].detach(), weight.detach())
    assert theirs.config.decoder_start_token_id == 0 and theirs.config.eos_token_id == 1
    again = open_hf(tmp_path / "theirs").manifest
    assert again.parameters == model.config and again.generation == model.manifest.generation


def test_an_encoder_is_exported_as_one(twins: dict[str, Twin], tmp_path: Path) -> None:
    encoder = transformers.T5EncoderModel.from_pretrained(twins["t5"].folder)
    encoder.save_pretrained(tmp_path / "one")
    done = llmasos_jax.export(tmp_path / "one", "hf", tmp_path / "two")
    assert done.proven and done.saved_class == "T5EncoderModel"
    first, second = (open_hf(tmp_path / n).manifest.parameters for n in ("one", "two"))
    assert first == second


def edited(folder: Path, twin: Twin, **changes: Any) -> Path:
    """The twin's folder with other values in its config.json; None takes a key away."""
    folder.mkdir()
    config = {**json.loads((twin.folder / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").hardlink_to(twin.folder / "model.safetensors")
    return folder


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no start": ({"decoder_start_token_id": None}, "decoder_start_token_id.*add it"),
    "activation": ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj.*is not computed here"),
    "two activations": ({"dense_act_fn": "gelu"}, "dense_act_fn.*feed_forward_proj"),
    "unknown key": ({"d_fff": 3}, "d_fff"),
    "task": ({"architectures": ["T5ForTokenClassification"]}, "another task's head"),
    "umt5": (
        {"architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5"},
        "each of its layers has a table",
    ),
    "layers": ({"num_decoder_layers": 3}, "tensors are not those"),
    "too many": ({"num_layers": 2**20}, "must be"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, twins: dict[str, Twin], tmp_path: Path) -> None:
    changes, message = REFUSED[what]
    with pytest.raises(FormatError, match=message):
        open_hf(edited(tmp_path / "model", twins["t5"], **changes))


@pytest.mark.parametrize("value", [-1, 10**6, "0", True])
def test_a_wrong_start_is_said_of_its_file(
    value: Any, twins: dict[str, Twin], tmp_path: Path
) -> None:
    name = "decoder_start_token_id"
    folder = edited(tmp_path / "model", twins["t5"], **{name: value})
    with pytest.raises(FormatError, match=f'^config.json: "{name}" = .*correct it'):
        open_hf(folder)
    (folder / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(FormatError, match=f'^generation_config.json: "{name}" = .*correct it'):
        open_hf(folder)


def test_of_two_starts_the_one_of_generation_is_taken(
    twins: dict[str, Twin], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = edited(tmp_path / "model", twins["t5"])
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 2}))
    assert open_hf(folder).manifest.generation.decoder_start_id == 2
    assert "is 2 in generation_config.json and 0 in config.json; the first is taken" in caplog.text
    caplog.clear()
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0}))
    assert open_hf(folder).manifest.generation.decoder_start_id == 0 and not caplog.text


def test_which_models_are_tied(twins: dict[str, Twin], tmp_path: Path) -> None:
    """As transformers takes it: by `tie_word_embeddings`, else by the tensors."""
    read = {name: open_hf(twin.folder).manifest.parameters for name, twin in twins.items()}
    scale = 32**-0.5
    assert {n: (c.tie_embeddings, c.logit_scale) for n, c in read.items()} == {
        "t5": (True, pytest.approx(scale)),
        "t5-v1_1": (False, 1.0),
        "mt5": (False, 1.0),
        "mt5-tied": (True, 1.0),
    }
    # As published: the one key, and no other.
    old = dict(scale_decoder_outputs=None, tie_word_embeddings=False)
    published = open_hf(edited(tmp_path / "old", twins["t5-v1_1"], **old)).manifest.parameters
    assert published == read["t5-v1_1"]
    with pytest.raises(FormatError, match="lm_head.weight: missing"):
        open_hf(edited(tmp_path / "none", twins["t5"], **old))
    tied = dict(scale_decoder_outputs=None, tie_word_embeddings=None)
    with pytest.raises(FormatError, match="lm_head.weight: differs from shared.weight"):
        open_hf(edited(tmp_path / "both", twins["t5-v1_1"], **tied))


def corrupted(cfg: ModelConfig) -> tuple[Any, Any]:
    """The objective, and a batch of it: texts of several lengths, so that rows have padding."""
    sentinels = tuple(range(VOCAB - 1, VOCAB - 11, -1))
    inside_v = np.zeros(VOCAB, bool)
    vocabulary = Vocabulary(VOCAB, None, 1, None, 0, (0, 1, *sentinels), inside_v, sentinels)
    config = Config(
        cfg,
        data=DataConfig(sequence_length=24),
        objective=ObjectiveConfig(name="span_corruption", mask_rate=0.3, span_length=2.0),
    )
    objective = build_objective(config, vocabulary)
    rng = np.random.default_rng(0)
    lists = [[*rng.integers(4, 50, n).tolist(), 1] for n in (70, 9, 31)]
    rows = objective.rows(TokenDocuments.from_lists(lists), 24)
    made = [objective.prepare(rows[i], np.random.default_rng(i)) for i in range(3)]
    return objective, jax.tree.map(lambda *leaves: np.stack(leaves), *made)


@pytest.mark.parametrize("name", ["t5", "t5-v1_1"])
def test_loss_and_the_gradient_by_every_parameter(name: str, twins: dict[str, Twin]) -> None:
    files, definition, params = bound(twins[name].folder)
    cfg = definition.cfg
    objective, batch = corrupted(cfg)
    # Where rows are full, take ids away from one: then both sides have padding.
    batch.extra["encoder_segment_ids"][0, 17:] = 0
    batch.segment_ids[0, 6:], batch.loss_weights[0, 6:] = 0, 0
    assert batch.loss_weights.sum() > 10

    def loss(params: Any) -> jax.Array:
        sums = objective.loss(definition.bind(params), batch, Runtime(), None)
        return sums.nll_sum / sums.weight_sum

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    theirs = twins[name].model
    theirs.zero_grad()
    labels = np.where(batch.loss_weights > 0, batch.targets, -100).astype(np.int64)
    wanted = theirs(
        input_ids=torch.from_numpy(batch.extra["encoder_tokens"].astype(np.int64)),
        attention_mask=torch.from_numpy((batch.extra["encoder_segment_ids"] > 0).astype(np.int64)),
        decoder_input_ids=torch.from_numpy(batch.tokens.astype(np.int64)),
        decoder_attention_mask=torch.from_numpy((batch.segment_ids > 0).astype(np.int64)),
        labels=torch.from_numpy(labels),
    ).loss
    wanted.backward()
    assert abs(float(value) - wanted.item()) <= SIMPLE * wanted.item()
    named = {n: stored(np.asarray(g)) for n, g in flatten(gradients).items()}
    back = unbind(t5._table(cfg), cfg, named)
    for part, weight in theirs.named_parameters():
        ours, other = back[part].read(), weight.grad.numpy()
        assert np.abs(other).max() > 0, part
        assert np.abs(ours - other).max() <= 1e-4 * np.abs(other).max(), part
    theirs.zero_grad()
