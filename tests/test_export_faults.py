"""Ten faults that an exporter may have, each refused by the proof of each format that can have it.

A fault is planted in what is written, and hidden from what is read back: as if writer and reader
shared the mistake. So it is the other program that tells. More of them, by the parts of one format:
`test_gguf_export.py`, `test_onnx_export.py`, `test_export.py`.
"""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import small_export
from small_export import CFG
from small_model import to_neighbours

from llmasos_jax.cli.main import main
from llmasos_jax.evals.export.targets import TABLE
from llmasos_jax.evals.export.weights import Read
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import stored

pytestmark = pytest.mark.parity
Fault = Callable[[ModelFiles], ModelFiles]


def config(**changes: object) -> Fault:
    """The folder says another network, with the same weights as far as it has them."""

    def plant(files: ModelFiles) -> ModelFiles:
        cfg = CFG.replace(**changes)
        lost = {"head.w"} if cfg.tie_embeddings else set()
        lost |= {n for n in files.tensors if n.endswith("_bias") and not cfg.qkv_bias}
        kept = {n: t for n, t in files.tensors.items() if n not in lost}
        manifest = files.manifest.replace(parameters=cfg)
        return dataclasses.replace(files, manifest=manifest, tensors=kept)

    return plant


def weights(of: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """Tensors whose names end so are changed."""

    def plant(files: ModelFiles) -> ModelFiles:
        changed = {n: stored(change(t.read())) for n, t in files.tensors.items() if n.endswith(of)}
        return dataclasses.replace(files, tensors={**files.tensors, **changed})

    return plant


def gate_is_up(files: ModelFiles) -> ModelFiles:
    pair = {"gate": "up", "up": "gate"}
    tensors = {n: files.tensors[_renamed(n, pair)] for n in files.tensors}
    return dataclasses.replace(files, tensors=tensors)


def _renamed(name: str, pair: dict[str, str]) -> str:
    *first, last = name.split(".")
    return ".".join([*first, pair.get(last, last)])


def other_words(files: ModelFiles) -> ModelFiles:
    """The tokenizer of an earlier day goes along."""
    old = small_export.tokenizer(Path(tempfile.mkdtemp()), merges=1)
    return dataclasses.replace(files, tokenizer=old)


def other_start(out: Path) -> None:
    """Texts begin with another token."""
    path = out / "tokenizer.json"
    found = json.loads(path.read_text())
    (special,) = found["post_processor"]["special_tokens"].values()
    special["ids"] = [1]
    path.write_text(json.dumps(found))


def as_matrix(w: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(w.reshape(32, 32).T).reshape(w.shape)


ROPE: Fault = lambda files: weights("attn.k", to_neighbours)(
    weights("attn.q", to_neighbours)(files)
)
FAULTS: dict[str, Fault] = {
    "rope layout": ROPE,
    "untied head dropped": config(tie_embeddings=True),
    "eps": config(norm_eps=1e-3),
    "swapped gate and up": gate_is_up,
    "permuted heads": weights("attn.q", lambda w: np.ascontiguousarray(w[:, ::-1])),
    "missing bias": config(qkv_bias=False, attention_out_bias=False),
    "wrong scale": weights("attn.q", lambda w: w * np.float32(8**-0.5)),
    "transposed weight": weights("attn.o", as_matrix),
    "stale tokenizer": other_words,
}
SPOILT: dict[str, Callable[[Path], None]] = {"wrong bos": other_start}
# What the message says: where the folder and the model part, and what makes them agree.
DIFFER = r"gives (logits|log_probabilities) that differ by .*; nothing was kept. not the same: "
AT_0 = DIFFER + "they part at layer 0;.* hint: "
TOLD = {
    "rope layout": AT_0 + "rope layout",
    "untied head dropped": DIFFER + "they part at logits;.* hint: tied head",
    "eps": AT_0 + "eps: ",
    "swapped gate and up": DIFFER
    + r"they part at layer 0;.* hint: .*\(in layers.0.mlp.gate, layers",
    "permuted heads": AT_0 + r".*layers.0.attn.q .*\(head order\)",
    "missing bias": DIFFER
    + "they part at layer 0;.* hint: qkv_bias|says parameters.qkv_bias=False, not True",
    "wrong scale": AT_0 + ".*layers.0.attn.q is 0.353553 times",
    "transposed weight": AT_0 + ".*layers.0.attn.o is transposed",
    "wrong bos": r"is not the model's tokenizer: .*\[1, .*not \[0, .*; nothing was kept",
    "stale tokenizer": "is not the model's tokenizer: .* 'Hello, world! 123'",
}
CASES = [
    *(("hf", fault) for fault in TOLD),
    *(("gguf", f) for f in ("missing bias", "wrong scale", "transposed weight", "stale tokenizer")),
    *(("onnx", f) for f in ("untied head dropped", "wrong bos", "transposed weight")),
    *(("onnx", "stale tokenizer"), ("stablehlo", "eps"), ("stablehlo", "stale tokenizer")),
]
NEEDS = {"hf": "transformers", "gguf": "xllamacpp", "onnx": "onnxruntime", "stablehlo": "jax"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export.source(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    def plant(name: str, fault: str) -> None:
        target, right = TABLE[name], []
        write = target.write

        def wrong(files: ModelFiles, out: Path, *rest: object) -> object:
            right.append(target.said(files))
            changed = FAULTS.get(fault, lambda files: files)(files)
            written = write(changed, out, *rest)  # pyright: ignore[reportArgumentType]
            SPOILT.get(fault, lambda out: None)(out)
            return written

        monkeypatch.setattr(target, "write", wrong)
        monkeypatch.setattr(target, "stored", lambda folder: Read(right[0].tensors))

    return plant


@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
@pytest.mark.parametrize(("to", "fault"), CASES, ids=[f"{to}: {f}" for to, f in CASES])
def test_a_planted_fault_is_refused(
    to: str,
    fault: str,
    model: Path,
    planted: Callable[[str, str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(NEEDS[to], reason="needs the extras `parity` and `export`")
    planted(to, fault)
    assert main(["export", str(model), f"--to={to}", f"--out={tmp_path / 'out'}"]) == 1
    said = capsys.readouterr().err
    assert re.search(TOLD[fault], said), said
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())
