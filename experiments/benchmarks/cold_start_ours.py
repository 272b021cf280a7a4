"""Loads a folder and writes one token. A worker of cold_start.py: a line at once, then one of JSON.

What `llmasos generate` does, with the id that was drawn said too.
"""

from __future__ import annotations

import json
import os
import sys

from cold_start_peak import peak_mb

from llmasos_jax.parallel.compile_cache import use_compile_cache


def main() -> None:
    """Writes, and leaves without taking the process apart."""
    folder, prompt = sys.argv[1:]
    programs = use_compile_cache()
    from llmasos_jax.generate.load import load_model

    model = load_model(folder)
    text = model.generate_text(prompt, max_length=1, temperature=0)
    print("first token", flush=True)
    row = {"tokens": len(model.encode(prompt)), "id": model.encode(text)[0], "text": text}
    row |= {"compiled": programs.requested - programs.found, "peak_mb": peak_mb()}
    print(json.dumps(row), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
