"""llama.cpp in a process of its own: it ends a process that gives it a file which it does not take.

    python -m llmasos_jax.evals.export.llama_child FILE CONTEXT THREADS embeddings|tokens

The first line on standard output is the address on which it answers; it ends with its input.
"""

from __future__ import annotations

import sys
from typing import Any


def main(arguments: list[str]) -> int:
    """Serves one model until standard input ends."""
    path, context, threads, kind = arguments
    import xllamacpp as library

    xllamacpp: Any = library  # its names are made when it is loaded
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = int(context)
    params.n_parallel = 1
    params.warmup = False
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 1  # errors
    # Keys and values as they are, and attention by plain products.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if kind == "embeddings":
        params.embedding = True
        params.n_batch = params.n_ubatch = int(context)  # both sides are seen: no text in parts
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
