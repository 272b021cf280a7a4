"""Loads a folder and writes one token. A worker of cold_start.py: one line of JSON, then the end.

What `llmasos generate` does, with the id that was drawn said too.
"""

from __future__ import annotations

import json
import os
import sys

from llmasos_jax.cli.compile_cache import use_compile_cache


def main() -> None:
    """Writes, and leaves without taking the process apart."""
    folder, prompt = sys.argv[1:]
    programs = use_compile_cache()
    from llmasos_jax.generate.load import load_model

    model = load_model(folder)
    text = model.generate_text(prompt, max_length=1, temperature=0)
    row = {"tokens": len(model.encode(prompt)), "id": model.encode(text)[0], "text": text}
    print(json.dumps({**row, "compiled": programs.requested - programs.found}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
