"""Fine-tuning runs opened as models: merged as they were trained, and refused where they cannot."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from old_checkpoint import without_manifest
from small_hf import LLAMA, write
from tolerances import SIMPLE
from tuned_runs import STEP, config_on, outputs_of, probe_for, tuned

import llmasos_jax
from llmasos_jax.checkpoint import steps
from llmasos_jax.cli.main import main
from llmasos_jax.config.build import to_dict
from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import FormatError
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.read import read_model
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.answers import LABELS, LOGITS

SMALL = ModelConfig(40, 64, 3, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=24, qkv_bias=True)
TEMPLATE = "{{ messages[0].content }}"
KINDS = {
    "lora": {"rank": 3},
    "some": {"rank": 2, "targets": ("attn.q", "*.down")},
    "rslora": {"rank": 4, "rank_stabilized": True},
    "dora": {"rank": 2, "dora": True},
    "int8": {"rank": 2, "quantize": "int8"},
    "int4-dora": {"rank": 2, "quantize": "int4", "dora": True},
    "full": {"method": "full"},
}


def small(folder: Path, cfg: ModelConfig = SMALL, dtype: str = "float32") -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        name: stored(rng.normal(0, 0.2, spec.shape).astype(np.float32).astype(dtype))
        for name, spec in expected(cfg).items()
    }
    generation = Generation((3,), ("stop",), TEMPLATE)
    return write_model(folder, Manifest("base", cfg, generation=generation), tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_computes_what_was_trained(kind: str, tmp_path: Path) -> None:
    run = tuned(tmp_path / "run", small(tmp_path / "base"), **KINDS[kind])
    files = open_model(run.folder)
    probe = probe_for(SMALL)
    wanted, found = run.outputs(probe)[LOGITS], outputs_of(files, probe)[LOGITS]
    np.testing.assert_allclose(found, wanted, rtol=SIMPLE, atol=SIMPLE * np.abs(wanted).max())
    untuned = outputs_of(open_model(tmp_path / "base"), probe)[LOGITS]
    assert np.abs(found - untuned).max() > 0.05 * np.abs(wanted).max()
    assert {tensor.dtype for tensor in files.tensors.values()} == {"float32"}
    said = files.manifest.metadata
    assert said["step"] == STEP and said["finetune"]["base_sha256"] == (
        run.config.finetune.base_sha256
    )
    merged_onto = said["finetune"].get("merged_onto")
    quantize = KINDS[kind].get("quantize")
    assert (merged_onto is None) == (quantize is None) and (quantize or "") in (merged_onto or "")


def test_new_head_on_a_frozen_trunk(tmp_path: Path) -> None:
    trunk = ModelConfig(40, 64, 1, causal=False, head=None, norm_placement="post", pooler=False)
    labels = Classifier(("ham", "spam"))
    source = small(tmp_path / "base", trunk)
    run = tuned(tmp_path / "run", source, classifier=labels, pooler=True, method="head")
    files = open_model(run.folder)
    assert files.manifest.parameters.classifier == labels
    probe = probe_for(trunk)
    wanted, found = run.outputs(probe)[LABELS], outputs_of(files, probe)[LABELS]
    assert wanted.shape == (2, 2)
    np.testing.assert_allclose(found, wanted, rtol=SIMPLE, atol=SIMPLE)
    assert np.array_equal(
        files.tensors["embed.table"].read(), open_model(source).tensors["embed.table"].read()
    )


def test_real_run_is_a_model_for_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = ModelConfig(260, 64, 2, num_heads=4, ffn_dim=24, context_length=32)
    base = llmasos_jax.init_model(Manifest("base", cfg, tokenizer={"kind": "bytes"}))
    base.save(tmp_path / "base")
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 60)
    given = llmasos_jax.default_config()
    given.name, given.finetune.base, given.finetune.rank = "cats", str(tmp_path / "base"), 4
    given.data.source, given.data.path = "text", str(tmp_path / "text.txt")
    given.data.heldout_fraction, given.data.sequence_length = 0.0, 16
    given.train.batch_size, given.train.steps, given.train.eval_every_steps = 8, 2, None
    given.optim.learning_rate, given.optim.warmup_steps = 0.1, 0
    run = tmp_path / "run"
    result = llmasos_jax.finetune(given, run)
    model = llmasos_jax.load_model(run)
    assert model.tokenizer.encode("a") == ByteTokenizer().encode("a")
    capsys.readouterr()
    main(["convert", str(run), str(tmp_path / "out")])
    assert "cats at step 2" in capsys.readouterr().out
    back, files = read_model(tmp_path / "out"), open_model(run)
    for name, tensor in files.tensors.items():
        np.testing.assert_array_equal(back.tensors[name].read(), tensor.read(), strict=True)
    main(["inspect", str(run), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["parameters"] == files.num_parameters
    assert said["tokenizer"] == f"of {tmp_path / 'base'}"  # config.tokenizer is not read
    assert said["moved"] == sum(
        int(np.prod([int(n) for n in shape.partition("[")[2].rstrip("]").split(",")]))
        for name, shape in said["tensors"].items()
        if name.startswith("params/")
    )
    assert 0 < said["moved"] < said["parameters"] and result.step == 2
    assert main(["export", str(run), "--to=peft", f"--out={tmp_path / 'peft'}", "--unproven"]) == 0
    assert "PEFT opens no base of this kind" in capsys.readouterr().out
    np.testing.assert_allclose(
        open_model(tmp_path / "peft").tensors["layers.1.mlp.up"].read(),
        files.tensors["layers.1.mlp.up"].read(),
        rtol=1e-6,
        atol=1e-6,
    )
    main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "hf"), "--unproven"])
    hf = open_model(tmp_path / "hf")
    changed = "layers.1.mlp.up"
    np.testing.assert_array_equal(hf.tensors[changed].read(), files.tensors[changed].read())
    assert not np.array_equal(
        files.tensors[changed].read(), open_model(tmp_path / "base").tensors[changed].read()
    )


def test_template_and_ends_are_those_of_the_base(tmp_path: Path) -> None:
    source = small(tmp_path / "base", dtype="float16")
    run = tuned(tmp_path / "run", source, rank=1, chat_template="{{ 1 }}")
    generation = open_model(run.folder).manifest.generation
    assert generation == Generation((3,), ("stop",), "{{ 1 }}")


def test_what_lacks_is_named(tmp_path: Path) -> None:
    write(tmp_path / "base", LLAMA)
    run = tuned(tmp_path / "run", tmp_path / "base", rank=1)
    write(tmp_path / "base", LLAMA, seed=1)
    digest = str(run.config.finetune.base_sha256)[:12]
    with pytest.raises(FormatError, match=f"{digest}.*put back the model that it began with"):
        open_model(run.folder)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(FormatError, match=r'changed in ".*base", and that cannot be opened .*\)'):
        open_model(run.folder)


def test_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    source = small(tmp_path / "base")
    run = tuned(tmp_path / "run", source, rank=2)
    other, _ = config_on(source, rank=3)
    path = run.folder / "checkpoints" / str(STEP) / steps.CONFIG / "metadata"
    # As before there were hashes, which would tell that it is not what was written.
    without_manifest(path.parents[1])
    path.write_text(json.dumps(to_dict(other)))
    with pytest.raises(FormatError, match="as .*, and the checkpoint has it as"):
        open_model(run.folder)
    more = dataclasses.replace(other.finetune, rank=2, targets=("attn.q",))
    path.write_text(json.dumps(to_dict(dataclasses.replace(other, finetune=more))))
    with pytest.raises(FormatError, match="moved .* as None, and the checkpoint has it"):
        open_model(run.folder)
