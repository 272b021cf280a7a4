"""Distillation: torch's loss and gradients, any mesh, runs that go on, what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import re
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_meshes import (
    MIXED,
    ONE,
    QUICK,
    SMALL,
    assert_same,
    batch,
    config,
    mesh_of,
    params,
    trainer_of,
)
from small_model import written
from small_run import At
from tolerances import PARITY, SIMPLE

import llmasos_jax
from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.cli.main import main
from llmasos_jax.config.build import default_config
from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.model import Encoder, ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, ObjectiveConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary, stand_in
from llmasos_jax.errors import ConfigError, FormatError, PreemptedError
from llmasos_jax.evals.card import model_card
from llmasos_jax.finetune.resolve import resolve
from llmasos_jax.finetune.teacher import check_same_ids, identity
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.count import flops_per_row
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.progress import Progress
from llmasos_jax.train.hooks import read_metrics
from llmasos_jax.train.pretrained import frozen_weights
from llmasos_jax.train.reference import _log_probs
from llmasos_jax.train.result import read_result
from llmasos_jax.train.run import speed_of
from llmasos_jax.train.step import Trainer, make_trainer
from llmasos_jax.train.trained import TEACHER, without_teacher
from llmasos_jax.types import Tree

DISTILL = ObjectiveConfig("distill")
# Both tables are filled up above the ids of a tokenizer: to 64, and to 72.
NUM_TOKENS = 61
LARGER = SMALL.replace(
    vocab_size=72, embedding_dim=48, num_layers=3, num_kv_heads=2, tie_embeddings=False
)


def vocabulary(size: int, num_tokens: int) -> Vocabulary:
    return dataclasses.replace(stand_in(size), num_tokens=num_tokens)


def taught(cfg: Config, teacher: ModelConfig = LARGER, num_tokens: int = NUM_TOKENS) -> Trainer:
    words = vocabulary(cfg.model.vocab_size, num_tokens)
    trainer = make_trainer(cfg, mesh_of(cfg.mesh), words, teacher)
    assert trainer.teacher is not None
    # Scanned layers compile faster than ones that are written out.
    own, other = (
        dataclasses.replace(x.runtime, max_unrolled=1) for x in (trainer, trainer.teacher)
    )
    return dataclasses.replace(
        trainer, runtime=own, teacher=dataclasses.replace(trainer.teacher, runtime=other)
    )


def with_teacher(cfg: Config, weight: float = 0.5, temperature: float = 1.0) -> Config:
    finetune = FinetuneConfig(
        teacher="larger", teacher_weight=weight, teacher_temperature=temperature
    )
    return dataclasses.replace(cfg, finetune=finetune)


def loss_and_grad(trainer: Trainer, own: Tree, teacher: Tree | None, rows: Batch) -> Any:
    weights = jax.device_put(own, trainer.state_shardings.params)
    frozen = {} if teacher is None else {TEACHER: teacher}
    run = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)
    return jax.device_get(run(weights, trainer.put(rows), jax.random.key(3), frozen=frozen))


@functools.cache
def on_one(cfg: Config) -> Any:
    cfg = dataclasses.replace(cfg, mesh=ONE)
    return loss_and_grad(taught(cfg), params(SMALL), params(LARGER), batch())


@pytest.mark.parametrize(
    "options",
    [
        {"mesh": MIXED, "loss_chunk": 6},
        {"mesh": MeshConfig(fsdp=(2,)), "accumulate_steps": 4},
        {"mesh": MeshConfig(data=2, context=2, tensor=2)},
    ],
    ids=["mixed", "accumulated", "context"],
)
def test_loss_and_gradients_do_not_depend_on_the_mesh(options: dict[str, Any]) -> None:
    cfg = with_teacher(config(objective=dataclasses.replace(DISTILL, z_loss=1e-3), **options))
    trainer = taught(cfg)
    found = loss_and_grad(trainer, params(SMALL), params(LARGER), batch())
    plain = dataclasses.replace(cfg.train, accumulate_steps=1, loss_chunk=None)
    wanted = on_one(dataclasses.replace(cfg, train=plain))
    assert_same(found, wanted)
    means = wanted[0].means()
    assert means["kl"] > 0.2 and means["loss"] > 0.5 * (means["kl"] + means["nll"])


def test_no_weight_is_sft() -> None:
    cfg = config(loss_chunk=6, objective=ObjectiveConfig("sft", z_loss=1e-3))
    sums, grads = loss_and_grad(trainer_of(cfg), params(SMALL), None, batch())
    cfg = dataclasses.replace(cfg, objective=dataclasses.replace(cfg.objective, name="distill"))
    cfg = with_teacher(cfg, weight=0.0)
    found, found_grads = loss_and_grad(taught(cfg), params(SMALL), params(LARGER), batch())
    assert found.loss_sum == sums.loss_sum and found.nll_sum == sums.nll_sum
    assert found.extra.pop("kl") > 0 and found.extra == sums.extra
    jax.tree.map(np.testing.assert_array_equal, found_grads, grads)


def test_its_own_teacher_has_nothing_to_teach() -> None:
    cfg = with_teacher(config(objective=DISTILL, dropout_rate=0.0, loss_chunk=6), weight=1.0)
    trainer = taught(cfg, SMALL)
    sums, grads = loss_and_grad(trainer, params(SMALL), params(SMALL), batch())
    _, moved = loss_and_grad(trainer, params(SMALL), jax.tree.map(np.sin, params(SMALL)), batch())
    assert abs(sums.loss_sum) < PARITY * sums.weight_sum < PARITY * sums.nll_sum
    for grad, other in zip(jax.tree.leaves(grads), jax.tree.leaves(moved), strict=True):
        assert np.linalg.norm(grad) < SIMPLE * np.linalg.norm(other)


def answers(size: int, count: int = 4, length: int = 15) -> Batch:
    """Rows of one text each, padding behind it, of which the second half is scored."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, size, (count, length + 1)).astype(np.int32)
    lengths = rng.integers(8, length + 1, (count, 1))
    positions = np.tile(np.arange(length, dtype=np.int32), (count, 1))
    segments = (positions < lengths).astype(np.int32)
    weights = segments * (positions >= lengths // 2)
    return Batch(ids[:, :-1], ids[:, 1:], weights.astype(np.float32), segments, positions)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 3.0)])
def test_loss_and_gradients_are_torchs(weight: float, temperature: float) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from small_hf import LLAMA
    from torch.nn import functional
    from torch_twin import named_gradients, twin

    model, own = twin()
    larger = {"vocab_size": 28, "hidden_size": 24, "num_hidden_layers": 3}
    teacher, teacher_params = twin({**LLAMA, **larger}, seed=1)
    num_tokens = 22
    rows = answers(num_tokens)
    ids, targets, scored = map(torch.from_numpy, (rows.tokens, rows.targets, rows.loss_weights))
    mask = torch.from_numpy(rows.segment_ids)
    given = {"input_ids": ids.long(), "attention_mask": mask}
    logits = model.torch(**given).logits
    with torch.no_grad():
        wanted = teacher.torch(**given).logits
    log_probs = [
        functional.log_softmax(x[..., :num_tokens] / temperature, -1) for x in (logits, wanted)
    ]
    kl = functional.kl_div(*log_probs, reduction="none", log_target=True).sum(-1)
    nll = functional.cross_entropy(logits.mT, targets.long(), reduction="none")
    mean = lambda values: (values * scored).sum() / scored.sum()
    loss = (1 - weight) * mean(nll) + weight * temperature**2 * mean(kl)
    model.torch.zero_grad()
    loss.backward()

    cfg = Config(
        model.cfg,
        data=DataConfig(sequence_length=15),
        objective=DISTILL,
        train=TrainConfig(batch_size=4, steps=2, loss_chunk=6),
        mesh=ONE,
    )
    cfg = with_teacher(cfg, weight, temperature)
    trainer = taught(cfg, teacher.cfg, num_tokens)
    sums, grads = loss_and_grad(trainer, own, teacher_params, rows)
    means = sums.means()
    for name, value in (("loss", loss), ("kl", mean(kl)), ("nll", mean(nll))):
        assert means[name] == pytest.approx(float(value.detach()), rel=SIMPLE), name
    mine = named_gradients(model, jax.tree.map(lambda g: g / sums.weight_sum, grads))
    theirs = {n: p.grad.numpy() for n, p in model.torch.named_parameters()}
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        error = np.linalg.norm(mine[name] - value) / np.linalg.norm(value)
        assert error < SIMPLE, (name, error)


def test_an_objective_may_have_a_reference_too() -> None:
    """One from outside the package; what the base says is asked of the base alone."""
    trainer = taught(with_teacher(config(objective=DISTILL)))

    def says(model: Any, rows: Batch, runtime: Any) -> jax.Array:
        x_btd = model.hidden(rows.tokens, runtime=runtime).x_btd
        return jnp.sum(x_btd, axis=1)[:, :2].astype(jnp.float32)

    objective = dataclasses.replace(trainer.objective, prepare=lambda row, _: row, reference=says)
    trainer = dataclasses.replace(trainer, objective=objective)
    rows = [jax.tree.map(lambda x, i=i: x[i], batch()) for i in range(3)]
    with Progress("Scoring", 3) as bar:
        found = _log_probs(trainer, rows, params(SMALL), {TEACHER: params(LARGER)}, bar)
    alone = dataclasses.replace(trainer.runtime, manual=None)
    wanted = says(trainer.definition.bind(params(SMALL)), batch(), alone)[:3]
    np.testing.assert_allclose(found, wanted, rtol=SIMPLE, atol=SIMPLE)


def test_memory_is_that_of_a_chunk() -> None:
    """Two tables of 4096 scores for 4 x 128 tokens are 16.8 MB; in chunks of 16 an eighth of it."""
    temporary = {}
    model = SMALL.replace(vocab_size=4096, context_length=128, num_layers=1)
    for chunk in (128, 16):
        cfg = config(model, objective=DISTILL, sequence_length=128, batch_size=4, loss_chunk=chunk)
        trainer = taught(with_teacher(cfg), model, 4096)
        own = trainer.abstract_state.params
        lowered = jax.jit(trainer.loss_and_grad).lower(
            own, trainer.abstract_batch, jax.random.key(0), frozen={TEACHER: own}
        )
        temporary[chunk] = lowered.compile(QUICK).memory_analysis().temp_size_in_bytes
    scores = 2 * 4 * 128 * 4096 * 4
    assert temporary[128] - temporary[16] > 0.7 * scores


STUDENT = ModelConfig(320, 32, 1, context_length=64, num_heads=4, num_kv_heads=2, ffn_dim=64)
TEACHES = STUDENT.replace(vocab_size=264, embedding_dim=48, num_layers=2, num_kv_heads=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher and answers."""
    path = tmp_path_factory.mktemp("distill")
    for name, model in (("base", STUDENT), ("larger", TEACHES)):
        written(path / name, model, ByteTokenizer())
    with open(path / "answers.jsonl", "w") as answers:
        for i in range(160):
            row = {"prompt": f"Q{i}: ", "completion": f"it is {i}"}
            answers.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def run_config(folder: Path, **finetune: Any) -> Any:
    """A run of six steps."""
    made = default_config()
    made.finetune.base, made.finetune.teacher = str(folder / "base"), str(folder / "larger")
    made.finetune.rank, made.finetune.teacher_temperature = 4, 2.0
    made.finetune.teacher_weight = 0.9
    for name, value in finetune.items():
        made.finetune[name] = value
    made.objective.name = "distill"
    made.data.update(source="jsonl", path=str(folder / "answers.jsonl"))
    made.data.update(sequence_length=48, heldout_fraction=0.4)
    made.train.update(steps=6, batch_size=16, accumulate_steps=2, dropout_rate=0.1)
    made.train.update(log_every_steps=1, eval_every_steps=6)
    made.optim.update(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0)
    made.checkpoint.every_steps = None
    return made


@pytest.fixture(scope="module")
def tuned(folder: Path) -> tuple[list[str], Path]:
    """A run from the command line on eight devices, rows over them: its words and its folder."""
    given = run_config(folder).to_json_best_effort()
    (folder / "run.py").write_text(
        "import json\nfrom llmasos_jax.config.build import default_config\n"
        "def get_config():\n    config = default_config()\n"
        f"    given = json.loads({given!r})\n"
        "    for group in ('data', 'train', 'optim', 'checkpoint'):\n"
        "        for name, value in given[group].items():\n"
        "            if value is not None or name == 'eval_every_steps':\n"
        "                config[group][name] = tuple(value) if isinstance(value, list) else value\n"
        "    config.checkpoint.every_steps = None\n"
        f"    config.finetune.base = {str(folder / 'base')!r}\n"
        "    config.finetune.rank, config.finetune.teacher_temperature = 4, 2.0\n"
        "    config.finetune.teacher_weight = 0.9\n"
        "    return config\n"
    )
    words = ["finetune", f"--config={folder / 'run.py'}", f"--workdir={folder / 'rows'}", "--json"]
    words.append("--config.objective.name=distill")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main([*words, f"--config.finetune.teacher={folder / 'larger'}"]) == 0
    (folder / "said").write_text(said.getvalue())
    return words, folder / "rows"


def values(workdir: Path) -> list[dict[str, float]]:
    return [line for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]


def leaves_of(workdir: Path) -> dict[str, bytes]:
    state = StoredState(workdir)
    return {name: state.read(name).tobytes() for name in state.leaves}


def test_a_mesh_learns_what_rows_alone_learn(
    folder: Path, tuned: tuple[list[str], Path], tmp_path: Path
) -> None:
    """And what it learns is the teacher's; the checkpoint has nothing of that."""
    made = run_config(folder)
    made.mesh.update(data=2, fsdp=(2,), tensor=2)
    made.sample.update(prompt="Q1", max_length=4)
    assert llmasos_jax.finetune(made, tmp_path / "mixed").sample
    one, many = values(tuned[1]), values(tmp_path / "mixed")
    assert len(one) == 6 and one[5]["kl"] < 0.95 * one[0]["kl"]
    for name in ("loss", "nll", "kl"):
        found, wanted = ([line[name] for line in run] for run in (many, one))
        np.testing.assert_allclose(found, wanted, rtol=SIMPLE)
    for line in one:
        assert line["loss"] == pytest.approx(0.1 * line["nll"] + 0.9 * 4 * line["kl"], rel=SIMPLE)
        assert line["perplexity"] == pytest.approx(np.exp(line["nll"]), rel=SIMPLE)
    heldout = [x for x in read_metrics(tuned[1] / "metrics.jsonl") if "heldout_kl" in x]
    assert heldout and heldout[-1]["heldout_kl"] > 0
    result = read_result(tuned[1])
    assert result is not None and result.heldout_kl == heldout[-1]["heldout_kl"]
    assert f"held-out KL        {result.heldout_kl:.4f} nats per token, from the" in str(result)
    said = (folder / "said").read_text()
    assert f"KL {one[5]['kl']:.4f}  lr" in said and f", KL {result.heldout_kl:.4f}" in said
    leaves = StoredState(tuned[1]).leaves
    assert not [name for name in leaves if TEACHER in name]
    assert all("_lora/" in name for name in leaves if name.startswith("params/"))


def test_every_weight_may_move(folder: Path, tmp_path: Path) -> None:
    made = run_config(folder, method="full", teacher_weight=1.0)
    made.mesh.update(data=2, fsdp=(2,), tensor=2)
    made.data.heldout_fraction = 0.0
    llmasos_jax.finetune(made, tmp_path / "run")
    found = values(tmp_path / "run")
    assert found[5]["kl"] < 0.9 * found[0]["kl"]
    names = [name for name in StoredState(tmp_path / "run").leaves if name.startswith("params/")]
    assert "params/embed/table" in names and not [name for name in names if TEACHER in name]


def test_stopped_and_going_on_is_never_stopped(
    folder: Path, tuned: tuple[list[str], Path], tmp_path: Path
) -> None:
    stop = At(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(PreemptedError):
        llmasos_jax.finetune(run_config(folder), tmp_path / "broken", [stop])
    llmasos_jax.finetune(run_config(folder), tmp_path / "broken")
    assert leaves_of(tmp_path / "broken") == leaves_of(tuned[1])
    losses = [[line["loss"] for line in values(x)] for x in (tmp_path / "broken", tuned[1])]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_the_teacher_is_named(
    folder: Path, tuned: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """In the config, the model and its card; another one may not take its place."""
    words, workdir = tuned
    _, base = resolve(run_config(folder))
    assert base.teacher is not None
    said = json.loads((workdir / "config.json").read_text())["finetune"]
    digest = identity(base.teacher)
    wanted = {"teacher": str(folder / "larger"), "teacher_sha256": digest}
    assert said.items() >= wanted.items()
    metadata: Any = open_model(workdir).manifest.metadata["finetune"]
    assert metadata.items() >= wanted.items()
    card = model_card(workdir)
    assert f"with larger as its teacher (SHA-256 `{digest[:16]}`)" in card
    again = [*words, "--config.train.steps=7", f"--config.finetune.teacher={folder / 'base'}"]
    assert main(again) == 2
    assert "finetune.teacher_sha256: " in capsys.readouterr().err


def test_a_teacher_with_other_parameters_is_another_teacher(
    folder: Path,
    tuned: tuple[list[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the same tensors: only model.json says how far apart its positions turn."""
    words, _ = tuned
    manifest, teacher = folder / "larger" / "model.json", TEACHES.replace(rope_theta=50.0)
    before = manifest.read_text()
    assert '"rope_theta": 10000.0' in before
    manifest.write_text(before.replace('"rope_theta": 10000.0', '"rope_theta": 50.0'))
    try:
        _, base = resolve(run_config(folder))
        assert base.teacher is not None and base.teacher.parameters == teacher
        again = [*words, f"--config.finetune.teacher={folder / 'larger'}", "--config.train.steps=7"]
        assert main(again) == 2
        said = capsys.readouterr().err
        assert "finetune.teacher_sha256: " in said and identity(base.teacher) in said
        given = json.loads((tuned[1] / "config.json").read_text())["finetune"]["teacher_sha256"]
        with pytest.raises(ConfigError, match="has weights and parameters of the hash"):
            llmasos_jax.finetune(run_config(folder, teacher_sha256=given), tmp_path / "run")
    finally:
        manifest.write_text(before)
    _, base = resolve(run_config(folder))
    assert base.teacher is not None and identity(base.teacher) == given


def test_the_teacher_is_held_in_the_products_type_and_counted(folder: Path) -> None:
    made = run_config(folder)
    made.precision.dtype = "bfloat16"
    resolved, base = resolve(made)
    assert base.teacher is not None
    mesh = make_mesh(resolved.mesh)
    trainer = make_trainer(resolved, mesh, teacher=base.teacher.parameters)
    frozen = frozen_weights(trainer, base)
    own, teacher = frozen[TEACHER]["periods"]["0"]["attn"]["o"], base.teacher.files.tensors
    held = np.stack([teacher[f"layers.{i}.attn.o"].read() for i in range(2)])
    assert own.dtype == jnp.bfloat16
    assert np.array_equal(np.asarray(own), held.astype(jnp.bfloat16))
    assert frozen[TEACHER]["final_norm"]["scale"].dtype == jnp.float32
    assert without_teacher(frozen).keys() == frozen.keys() - {TEACHER}
    # Of the student two thirds of a step, with adapters; of the teacher a forward pass.
    flops = flops_per_row(resolved.model, 48, 48) * 2 / 3 + flops_per_row(TEACHES, 48, 48) / 3
    assert speed_of(trainer).flops_per_token == pytest.approx(flops / 48)


WRONG = [
    (
        {"teacher": None},
        'objective.name="distill" imitates a larger model, and finetune.teacher is',
    ),
    ({"teacher_weight": 1.5}, "finetune.teacher_weight=1.5 must be between 0"),
    ({"teacher_weight": -0.5}, "finetune.teacher_weight=-0.5 must be between 0"),
    ({"teacher_temperature": 0.0}, "finetune.teacher_temperature=0.0 must be above 0"),
    ({"teacher_sha256": "0" * 64}, "and finetune.teacher_sha256 is 000000000000; give back"),
    ({"base": None}, "finetune.base is not set"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_wrong_configs(folder: Path, tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        llmasos_jax.finetune(run_config(folder, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_pupils(folder: Path, tmp_path: Path) -> None:
    made = run_config(folder)
    made.objective.name = "sft"
    with pytest.raises(ConfigError, match=r'is not asked anything by objective.name="sft"; set'):
        llmasos_jax.finetune(made, tmp_path / "run")
    made = run_config(folder)
    made.finetune.base = None
    made.model.update(vocab_size=320, embedding_dim=32, num_layers=1)
    with pytest.raises(FormatError, match=r'^finetune.teacher: ".*nowhere" is not there'):
        llmasos_jax.finetune(run_config(folder, teacher=str(folder / "nowhere")), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"by `llmasos finetune` alone; set both"):
        llmasos_jax.train(made, tmp_path / "run")


TEACHERS = [
    ({"causal": False}, "is an encoder, and a teacher predicts"),
    ({"prefix_lm": True}, "is a model that reads prompts in both directions, and a teacher"),
    ({"encoder": Encoder(1)}, "is an encoder-decoder, and a teacher"),
    ({"causal": False, "tie_embeddings": True, "head": None}, "is an encoder, and"),
    ({"context_length": 8}, "reads 8 tokens, and data.sequence_length=16; lower that"),
    (
        {"num_heads": 3, "head_dim": 8},
        'finetune.teacher="larger": periods.0.attn.k: axis "kv_heads"',
    ),
]


@pytest.mark.parametrize(("changes", "words"), TEACHERS)
def test_a_model_that_cannot_teach(changes: dict[str, Any], words: str) -> None:
    cfg = with_teacher(config(objective=DISTILL, mesh=MeshConfig(data=1, tensor=2)))
    plain = LARGER.replace(num_kv_heads=None)
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_trainer(cfg, mesh_of(cfg.mesh), teacher=plain.replace(**changes))


def test_prompts_read_in_both_directions_are_refused() -> None:
    cfg = with_teacher(config(SMALL.replace(prefix_lm=True), objective=DISTILL))
    with pytest.raises(ConfigError, match='objective.name="distill" never shows a prefix'):
        make_trainer(cfg, mesh_of(cfg.mesh), teacher=LARGER)


class _Words(ByteTokenizer):
    """Bytes whose 98th is said in another way, and ids behind them."""

    def __init__(self, word: str = "b", size: int = 259) -> None:
        self.vocab_size, self.word = size, word

    def token(self, number: int) -> str:
        return self.word if number == 98 else self.decode([number])

    def save(self, folder: Path) -> dict[str, Any]:
        return {"kind": self.word, "size": self.vocab_size}


def test_another_vocabulary_is_refused() -> None:
    check_same_ids(ByteTokenizer(), _Words(), "larger")  # saved in another way: the same ids
    same = 'finetune.teacher="larger" has another vocabulary than the base: id '
    for words, said in (
        (_Words("B"), "98 is 'B' there and 'b' here (259 and 259 ids); scores are compared id by"),
        (_Words(size=260), "259 is '' there and nothing here (260 and 259 ids)"),
        (_Words(size=200), "200 is nothing there and '\ufffd' here (200 and 259 ids)"),
    ):
        with pytest.raises(ConfigError, match=re.escape(same + said)):
            check_same_ids(ByteTokenizer(), words, "larger")
