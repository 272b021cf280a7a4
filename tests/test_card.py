"""The model card says what the run's files say."""

import json
from pathlib import Path

import pytest
from small_run import small_config

from llmasos_jax.cli.main import main
from llmasos_jax.config.build import to_dict
from llmasos_jax.errors import EvaluationError
from llmasos_jax.evals.card import model_card
from llmasos_jax.format.training import config_sha256
from llmasos_jax.models.count import count_parameters
from llmasos_jax.train.result import TrainResult

RESULT = {
    "task": "capitals",
    "task_hash": "ab" * 32,
    "model": "small|er",
    "model_hash": "cd" * 32,
    "num_examples": 40,
    "metrics": {"accuracy": {"value": 0.75, "low": 0.6, "high": 0.875, "signature": None}},
}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A folder as a run of 8 steps leaves it; its weights are not there."""
    config = small_config(tmp_path)
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    lines = [
        {"step": 7, "loss": 3.0, "tokens_per_s": 900.0},
        {"step": 8, "loss": 2.5, "tokens_per_s": 1000.0},
        {"step": 8, "heldout_loss": 2.75, "heldout_perplexity": 15.6},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    TrainResult(folder, 8, 2.5, 2.75, 15.6, 90.0, 20.25, 2048, 7.0).write()
    receipt = {"target": "gguf", "dtype": "float32", "proven": True, "difference": 3e-6}
    (folder / "export" / "parity.json").write_text(json.dumps(receipt))
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    return folder


def test_a_card_has_what_the_files_have(workdir: Path) -> None:
    config = small_config(workdir.parent)
    card = model_card(
        workdir, results=[workdir.parent / "result.json"], limits=["It knows no Chinese."]
    )
    for part in (
        "# small\n",
        f"{count_parameters(config.model):,} parameters",
        "8 of 8 steps",
        f"`{config_sha256(to_dict(config))}`",
        "`optim.learning_rate: ",
        "-> 0.01`",
        "| tokens | 2,048 |",
        "| training loss | 2.5000 nats per token, step 8 |",
        "| heldout loss | 2.7500, step 8 |",
        "| bigram perplexity (baseline) | 20.2500 |",
        "| capitals: accuracy | 0.75 [0.6, 0.875] (40 examples, task `abababababab`, "
        "model small\\|er `cdcdcdcdcdcd`) |",
        "| gguf, float32 | proven: outputs differ by 3.0e-06 of the largest (`export`) |",
        "- It knows no Chinese.",
    ):
        assert part in card, part
    assert "did not end" not in card
    assert str(workdir.parent) not in card  # where a file lies is nobody's business


def test_a_run_that_did_not_end_says_so(workdir: Path) -> None:
    (workdir / "result.json").unlink()
    (workdir / "metrics.jsonl").unlink()
    card = model_card(workdir)
    assert "The run did not end" in card and "Nothing was measured" in card
    assert "| tokens | not recorded |" in card


def test_a_fine_tuned_model_names_its_base(workdir: Path) -> None:
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["finetune"] |= {"base": "/there/base", "base_sha256": "ab" * 32, "rank": 4}
    path.write_text(json.dumps(config))
    said = (
        f"Fine-tuned from base (SHA-256 of its weights `{'ab' * 8}`) by low-rank changes of rank 4"
    )
    assert said in model_card(workdir)


def test_what_is_no_run_or_no_receipt_is_refused(workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no run"):
        model_card(tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match="no result of llmasos eval"):
        model_card(workdir, results=[workdir / "export" / "parity.json"])
    with pytest.raises(EvaluationError, match="no receipt of an export"):
        model_card(workdir, receipts=[tmp_path / "result.json"])


def test_the_command_writes_and_prints(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    out = workdir / "README.md"
    assert main(["card", str(workdir), f"--out={out}", "--limit=None known."]) == 0
    assert out.read_text().startswith("# small\n") and "- None known." in out.read_text()
    capsys.readouterr()
    assert main(["card", str(workdir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"].startswith("# small")
    assert main(["card", str(workdir / "no")]) == 2
