"""PEFT folders: written from LoRA runs and read as models, by our reader and by PEFT itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_hf import LLAMA, Json, write
from tolerances import SIMPLE
from tuned_runs import outputs_of, probe_for, tuned

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.heads import Classifier
from llmasos_jax.errors import FormatError
from llmasos_jax.evals.export.run import ExportResult
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.generate.load import load_model
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.answers import LABELS, LOGITS

WIDTHS: Json = {
    **{"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 24, "max_position_embeddings": 32},
}
BASES: dict[str, Json] = {
    "llama": LLAMA,
    "neox": {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", **WIDTHS}
    | {"rotary_pct": 0.5},
    "qwen": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **WIDTHS}
    | {"num_key_value_heads": 2},
    "phi3": {
        **{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **WIDTHS},
        **{"pad_token_id": 0, "original_max_position_embeddings": 32},
    },
    "gpt2": {
        **{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 24},
        **{"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "n_inner": 24},
        **{"bos_token_id": None, "eos_token_id": None},
    },
    "bert": {
        **{"architectures": ["BertForMaskedLM"], "model_type": "bert", **WIDTHS},
        "pad_token_id": 0,
    },
    "t5": {
        **{"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 24},
        **{"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
        **{"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    },
    "bert-base": {"architectures": ["BertModel"], "model_type": "bert", **WIDTHS},
}
DORA: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dora": True}
STABLE: dict[str, Any] = {"rank": 4, "alpha": 2.0, "rank_stabilized": True}
# A base, and what is trained of it; q, k, v of GPT-2 and GPT-NeoX are one product there.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-lora": ("llama", {"rank": 3, "alpha": 6.0}),
    "llama-dora": ("llama", {**DORA, "targets": ("attn.q", "mlp.down")}),
    "neox-rslora": ("neox", STABLE),
    "neox-one-of-three": ("neox", {"rank": 2, "targets": ("attn.k", "mlp.up")}),
    "gpt2-dora": ("gpt2", DORA),
    "phi3-lora": ("phi3", {"rank": 2}),
    "qwen-rslora": ("qwen", {**STABLE, "targets": ("*.o", "mlp.gate")}),
    "bert-lora": ("bert", {"rank": 2}),
    "bert-down": ("bert", {"rank": 2, "targets": ("mlp.down",)}),
    "t5-dora": ("t5", {**DORA, "targets": ("*.q", "*.up")}),
    "bert-base-dora": ("bert-base", {**DORA, "targets": ("attn.o", "attn.v")}),
}
TAGS = Classifier(("ham", "spam", "eggs"), "token")


def export(run: Path, out: Path, **options: Any) -> ExportResult:
    return llmasos_jax.export(run, "peft", out, **options)


def made(name: str, home: Path, **more: Any) -> Any:
    base, options = RUNS[name]
    write(home / "base", BASES[base])
    return tuned(home / "run", home / "base", **options, **more)


def assert_close(found: ModelFiles, wanted: ModelFiles) -> None:
    assert found.manifest.parameters == wanted.manifest.parameters
    for name, tensor in wanted.tensors.items():
        np.testing.assert_allclose(
            found.tensors[name].read(), tensor.read(), rtol=1e-6, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("name", RUNS)
def test_written_and_read_back_it_is_the_run(name: str, tmp_path: Path) -> None:
    run = made(name, tmp_path)
    result = export(run.folder, tmp_path / "adapter", unproven=True)
    assert not result.proven
    names = {path.name for path in result.path.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "parity.json"}
    assert_close(open_model(result.path), open_model(run.folder))


def test_what_the_config_says(tmp_path: Path) -> None:
    run = made("llama-dora", tmp_path)
    export(run.folder, tmp_path / "adapter", unproven=True)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert said["target_modules"] == ["down_proj", "q_proj"]
    assert (said["r"], said["lora_alpha"], said["use_dora"], said["bias"]) == (2, 4, True, "none")
    assert said["base_model_name_or_path"] == str(tmp_path / "base")
    assert said["task_type"] == "CAUSAL_LM" and said["modules_to_save"] is None


def test_ends_of_names_that_no_other_module_has(tmp_path: Path) -> None:
    run = made("bert-down", tmp_path)
    export(run.folder, tmp_path / "adapter", unproven=True)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert said["target_modules"] == ["0.output.dense", "1.output.dense"]


def test_ranks_of_products_that_are_one_there(tmp_path: Path) -> None:
    run = made("neox-rslora", tmp_path)
    export(run.folder, tmp_path / "adapter", unproven=True)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert said["rank_pattern"] == {"query_key_value": 12}
    assert said["alpha_pattern"] == pytest.approx({"query_key_value": 2.0 * 3**0.5})


def test_classifier_is_saved_whole(tmp_path: Path) -> None:
    run = made("bert-base-dora", tmp_path, classifier=TAGS)
    export(run.folder, tmp_path / "adapter", unproven=True)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert (said["modules_to_save"], said["task_type"]) == (["classifier"], "TOKEN_CLS")
    found, wanted = open_model(tmp_path / "adapter"), open_model(run.folder)
    assert found.manifest.parameters.classifier.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    for name in ("classifier.w", "classifier.bias"):
        np.testing.assert_array_equal(found.tensors[name].read(), wanted.tensors[name].read())


def test_base_is_found_beside_the_adapter(tmp_path: Path) -> None:
    run = made("llama-lora", tmp_path)
    export(run.folder, tmp_path / "adapter", unproven=True)
    change(tmp_path / "adapter", base_model_name_or_path="../base")
    assert_close(open_model(tmp_path / "adapter"), open_model(run.folder))
    change(tmp_path / "adapter", base_model_name_or_path="../gone")
    with pytest.raises(FormatError, match=r'adapter of "../gone", which cannot be opened'):
        open_model(tmp_path / "adapter")
    change(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "adapter"))
    with pytest.raises(FormatError, match="it is an adapter or a run itself"):
        open_model(tmp_path / "adapter")


def change(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **keys}))


REFUSED: dict[str, Any] = {
    "peft_type": "IA3",
    "bias": "all",
    "layers_to_transform": [0],
    "trainable_token_indices": [1, 2],
    "lora_bias": True,
    "use_qalora": True,
    "init_lora_weights": "pissa",
    "task_type": "DREAMING",
    "r": 0,
    "revision": 5,
    "target_modules": 3,
    "rank_pattern": {"(a+)+$": 2},
    "something_new": {"x": 1},
}


def test_what_is_not_understood_is_refused_by_name(tmp_path: Path) -> None:
    run = made("llama-lora", tmp_path)
    folder = tmp_path / "adapter"
    export(run.folder, folder, unproven=True)
    path = folder / "adapter_config.json"
    whole = json.loads(path.read_bytes())
    for key, value in REFUSED.items():
        path.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(FormatError, match=f'adapter_config.json: "{key}" = '):
            open_model(folder)
    for key, value, said in (
        ("r", 4.5, '"r" = 4.5 must be a whole number'),
        ("rank_pattern", {"q_proj": 2.7}, '"rank_pattern" = 2.7 must be a whole number'),
        ("r", 5, r"lora_A has \[3, 16\].*ask for \[5, 16\]"),
        ("use_dora", True, '"use_dora" = true asks for'),
        ("modules_to_save", ["norm"], "model.norm.weight are missing"),
        ("target_modules", ["q_proj", "lm_head"], "lm_head.lora_A.weight are missing"),
    ):
        path.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(FormatError, match=said):
            open_model(folder)
    path.write_text(json.dumps({**whole, "peft_type": "IA3", "feedforward_modules": ["x"]}))
    with pytest.raises(FormatError, match='"peft_type" = IA3'):
        open_model(folder)
    path.write_text(json.dumps({**whole, "something_new": None, "layers_pattern": ""}))
    assert_close(open_model(folder), open_model(run.folder))


def add(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> None:
    """Writes more tensors into an adapter."""
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | tensors, path, {"format": "pt"})
    change(folder, **config)


def test_what_is_saved_of_tied_embeddings_is_tied_no_more(tmp_path: Path) -> None:
    write(tmp_path / "base", LLAMA, tie_word_embeddings=True)
    run = tuned(tmp_path / "run", tmp_path / "base", rank=2)
    export(run.folder, tmp_path / "adapter", unproven=True)
    old, new = (open_model(tmp_path / "base").tensors["embed.table"].read() * k for k in (1, 2))
    for name, wanted in (("model.embed_tokens", (new, old)), ("lm_head", (old, new))):
        shutil.copytree(tmp_path / "adapter", tmp_path / name)
        tensors = {f"base_model.model.{name}.weight": new}
        add(tmp_path / name, tensors, modules_to_save=[name.rpartition(".")[2]])
        found = open_model(tmp_path / name)
        assert not found.manifest.parameters.tie_embeddings
        np.testing.assert_array_equal(found.tensors["embed.table"].read(), wanted[0])
        np.testing.assert_array_equal(found.tensors["head.w"].read(), wanted[1].T)
        with pytest.raises(FormatError, match="added head.w, which the model has not"):
            load_model(tmp_path / "base", adapters={"it": tmp_path / name})


def test_what_a_saved_table_of_other_models_would_leave_is_refused(tmp_path: Path) -> None:
    for base, name in (("bert", "bert.embeddings.word_embeddings"), ("t5", "shared")):
        home = tmp_path / base
        home.mkdir()
        write(home / "base", BASES[base])
        run = tuned(home / "run", home / "base", rank=2)
        export(run.folder, home / "adapter", unproven=True)
        tensors = {f"base_model.model.{name}.weight": np.zeros((24, 16), np.float32)}
        add(home / "adapter", tensors, modules_to_save=[name.rpartition(".")[2]])
        with pytest.raises(FormatError, match=f"saves {name}.weight, and in PEFT what"):
            open_model(home / "adapter")


def test_the_output_layer_is_no_product_that_is_read(tmp_path: Path) -> None:
    run = made("llama-lora", tmp_path)
    export(run.folder, tmp_path / "adapter", unproven=True)
    names = ("base_layer", "lora_A", "lora_B")
    add(
        tmp_path / "adapter",
        {f"base_model.model.lm_head.{name}.weight": np.zeros((2, 2), np.float32) for name in names},
    )
    with pytest.raises(FormatError, match="changes lm_head, and .*leave it out of target_modules"):
        open_model(tmp_path / "adapter")


def test_classifiers_on_decoders_have_no_class(tmp_path: Path) -> None:
    run = made("llama-lora", tmp_path, classifier=Classifier(("ham", "spam")))
    with pytest.raises(FormatError, match=r"a classifier on a decoder .*llmasos convert"):
        export(run.folder, tmp_path / "no", unproven=True)
    plain = tuned(tmp_path / "plain", tmp_path / "base", rank=3)
    export(plain.folder, tmp_path / "adapter", unproven=True)
    change(tmp_path / "adapter", task_type="SEQ_CLS")
    with pytest.raises(FormatError, match=r'"task_type" makes a classifier of a decoder \(LLaMA\)'):
        open_model(tmp_path / "adapter")


def test_other_models_and_other_runs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made("llama-lora", tmp_path)
    export(run.folder, tmp_path / "adapter", unproven=True)
    write(tmp_path / "base", LLAMA, num_hidden_layers=1)
    with pytest.raises(FormatError, match=r"layers.1.mlp.down_proj.*have no place in the model"):
        open_model(tmp_path / "adapter")
    full = tuned(tmp_path / "full", tmp_path / "base", method="full")
    with pytest.raises(FormatError, match='a run of finetune.method="full".*--to hf'):
        export(full.folder, tmp_path / "no", unproven=True)
    assert main(["export", str(tmp_path / "base"), "--to=peft", f"--out={tmp_path / 'no'}"]) == 2
    assert "is no fine-tuning run" in capsys.readouterr().err
    base, options = RUNS["gpt2-dora"]
    write(tmp_path / "gpt2", BASES[base])
    part = tuned(tmp_path / "part", tmp_path / "gpt2", **{**options, "targets": ("attn.q",)})
    with pytest.raises(FormatError, match="c_attn.weight holds .*attn.q together with .*attn.k"):
        export(part.folder, tmp_path / "no", unproven=True)
    assert not (tmp_path / "no").exists()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers|peft)")
@pytest.mark.parametrize("name", ["llama-lora", "neox-rslora", "gpt2-dora", "bert-base-dora"])
def test_peft_gives_the_same_as_the_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra `parity`")
    run = made(name, tmp_path)
    result = export(run.folder, tmp_path / "adapter")
    assert result.proven and result.difference is not None
    assert 0 < result.difference < SIMPLE
    receipt = json.loads((result.path / "parity.json").read_bytes())
    assert receipt["proven"] and receipt["target"] == "peft" and "peft" in receipt["versions"]
    probe = probe_for(run.config.model)
    for key, wanted in run.outputs(probe).items():
        found = outputs_of(open_model(result.path), probe)[key]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=SIMPLE * np.abs(wanted).max())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers|peft)")
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "classifier", "table", "both"])
def test_what_peft_writes_is_read(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    import torch
    import transformers

    torch.manual_seed(0)
    config: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    config |= {"use_rslora": kind == "rslora", "use_dora": kind == "dora"}
    saved_class = "LlamaForCausalLM"
    write(tmp_path / "base", LLAMA)
    if kind in ("table", "both"):
        write(tmp_path / "base", LLAMA, tie_word_embeddings=True)
        config |= {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": kind == "both"}
    if kind == "lora":
        config |= {"rank_pattern": {"layers.1.mlp.down_proj": 2}, "alpha_pattern": {"q_proj": 9}}
    if kind == "classifier":
        write(tmp_path / "base", BASES["bert"], architectures=["BertForPreTraining"])
        config |= {"target_modules": ["query", "attention.output.dense"], "task_type": "SEQ_CLS"}
        saved_class = "BertForSequenceClassification"
    options = {"num_labels": 3} if kind == "classifier" else {}
    model = getattr(transformers, saved_class).from_pretrained(tmp_path / "base", **options)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config)).eval()
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            factor = 1 + 0.1 * torch.randn_like(weight) if "magnitude" in name else None
            weight.data = weight.data * factor if "magnitude" in name else torch.randn_like(weight)
        elif weight.requires_grad and kind in ("table", "both"):
            weight.data = weight.data + torch.randn_like(weight)
    adapted.save_pretrained(tmp_path / "adapter")
    files = open_model(tmp_path / "adapter")
    probe = probe_for(files.manifest.parameters)
    with torch.no_grad():
        wanted = adapted(torch.from_numpy(probe.tokens_bt.astype(np.int64))).logits.numpy()
    found = outputs_of(files, probe)[LABELS if kind == "classifier" else LOGITS]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=SIMPLE * np.abs(wanted).max())
    if kind == "classifier":
        write(tmp_path / "base", BASES["bert"], architectures=["BertModel"])
        with pytest.raises(FormatError, match="with pooler.bias, which neither it nor its base"):
            open_model(tmp_path / "adapter")
