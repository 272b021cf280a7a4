"""`llmasos verify-resume` of many kinds of runs, each in its own processes.

    python experiments/acceptance/verify_resume.py             # all, about a quarter of an hour
    python experiments/acceptance/verify_resume.py mlm lora    # these, the others are kept

Writes verify_resume.json beside this file: what was killed when, where it went on from, how many
batches, restored leaves, losses and leaves of the last checkpoint differ.
"""

import argparse
import json
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

STREAM = ("data.max_documents=None", "data.source=jsonl", "data.streaming=True")
SMALL = ("data.max_documents=8", "train.eval_every_steps=5")
CASES = {
    "causal": ("tiny", SMALL, ()),
    "causal, killed three times": ("tiny", SMALL, ("--kill-at=4,9,15",)),
    "mlm": ("modernbert_tiny", (*SMALL, "model.vocab_size=1024"), ()),
    "mlm_nsp": ("bert_tiny", ("data.max_documents=40", "model.vocab_size=1024"), ()),
    "span corruption": ("t5_tiny", (*SMALL, "model.vocab_size=1024"), ()),
    "accumulated gradients": ("tiny", (*SMALL, "train.accumulate_steps=4"), ()),
    "dropout": ("tiny", (*SMALL, "train.dropout_rate=0.1"), ()),
    "bfloat16": ("tiny", (*SMALL, "precision.dtype=bfloat16"), ()),
    "bfloat16 weights": (
        "tiny",
        (*SMALL, "precision.dtype=bfloat16", "precision.weights=bfloat16"),
        (),
    ),
    "float16": ("tiny", (*SMALL, "precision.dtype=float16"), ()),
    "muon, moments in int8": ("tiny", (*SMALL, "optim.name=muon", "precision.moments=int8"), ()),
    "1 host to 2 to 1": ("tiny", SMALL, ("--kill-at=7,13", "--hosts=1,2,1")),
    "2 hosts to 4": ("tiny", SMALL, ("--kill-at=7", "--hosts=2,4")),
    "mesh 8x1x1 to 2x2x2": (
        "tiny",
        (*SMALL, "model.vocab_size=264"),
        ("--mesh=8x1x1,2x2x2",),
    ),
    "mesh 2x2x2 on 1 host to 8x1x1 on 2": (
        "tiny",
        (*SMALL, "model.vocab_size=264"),
        ("--mesh=2x2x2,8x1x1", "--hosts=1,2"),
    ),
    "mixture, first fit, 1 host to 2": ("mixture", (), ("--hosts=1,2",)),
    "stream": ("tiny", (*STREAM, "data.path=texts", "train.eval_every_steps=5"), ()),
    "stream, 1 host to 2": ("tiny", (*STREAM, "data.path=texts"), ("--hosts=1,2",)),
    "lora": ("sft", (), ()),
    "dpo": ("dpo", (), ()),
}


MIXTURE = """
from llmasos_jax.config.build import read_config


def get_config():
    config = read_config("tiny")
    config.data.max_documents = None
    config.data.packing = "first_fit"
    config.data.mixture = {
        "code": {"source": "stdlib", "max_documents": 20},
        "lines": {"source": "jsonl", "path": "texts", "weight": 2.5},
    }
    return config
"""


def write_texts(folder):
    """The standard library's files as lines of JSON."""
    folder.mkdir()
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    pieces = [text[i : i + 900] for text in texts for i in range(0, len(text), 900)]
    lines = [json.dumps({"text": piece}) for piece in pieces[:1000]]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")


def verify(name, folder):
    config, options, words = CASES[name]
    command = [sys.executable, "-m", "llmasos", "verify-resume", "--json", "--steps=20"]
    if config in ("sft", "dpo"):
        from tuning_processes import prepare

        prepare(folder)  # a tiny random base, and records
        command += [f"--config={folder}/tune.py:{config}"]
    elif config == "mixture":
        (folder / "mixture.py").write_text(MIXTURE)
        command += [f"--config={folder}/mixture.py"]
    else:
        command += [f"--config={config}", *(f"--config.{option}" for option in options)]
    write_texts(folder / "texts")
    start = time.perf_counter()
    done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=folder)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{name}: {done.stderr}")
    answer = json.loads(done.stdout)
    runs = [
        {
            "moment": run["moment"],
            "killed_at": run["killed_at"],
            "went_on_from": run["went_on_from"],
            "batches": run["steps"],
            "leaves": run["leaves"],
            "different_batches": len(run["batches"]),
            "different_restored_leaves": len(run["restored"]),
            "different_losses": len(run["losses"]),
            "largest_difference_of_a_loss": run["largest_difference"],
            "different_leaves_in_the_end": None if run["final"] is None else len(run["final"]),
        }
        for run in answer["runs"]
    ]
    seconds = round(time.perf_counter() - start, 1)
    return {"is_same": answer["is_same"], "where": answer["where"], "s": seconds, "runs": runs}


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all if none is given")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"there is no {sorted(unknown)}")
    import jax

    path = Path(__file__).with_suffix(".json")
    result = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    result |= {"python": platform.python_version(), "jax": jax.__version__}
    for name in args.cases or CASES:
        with tempfile.TemporaryDirectory(prefix="llmasos-verify-") as folder:
            row = verify(name, Path(folder))
        result["cases"][name] = row
        print(name, "the same" if row["is_same"] else "NOT THE SAME", row["s"], "s", flush=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if all(row["is_same"] for row in result["cases"].values()) else 1)


if __name__ == "__main__":
    main()
