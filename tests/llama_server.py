"""llama.cpp on a loopback port, through xllamacpp: another program's ids and texts."""

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LlamaServer:
    """A GGUF model in llama.cpp's server; a thread of this process until it ends.

    Args:
      path: the file.
      is_exact: whether keys and values are kept in float32, not float16.
    """

    def __init__(self, path: Path, *, is_exact: bool = False) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 512
        params.n_parallel = 1
        params.warmup = False
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = 1
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.verbosity = 0
        if is_exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(params)
        self.address: str = self._server.listening_address

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """What the server answers to a request."""
        request = urllib.request.Request(
            f"{self.address}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """The ids of a text, special tokens found in it."""
        found = self.post("tokenize", content=text, add_special=add_special, parse_special=True)
        return found["tokens"]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.post("detokenize", tokens=list(ids))["content"]

    def log_probabilities(self, ids: Sequence[int], count: int) -> list[float]:
        """Of each of `count` ids, the logarithm of its probability after `ids`, in nats."""
        answer = self.post(
            "completion",
            prompt=list(ids),
            n_predict=1,
            n_probs=count,
            cache_prompt=False,
            ignore_eos=True,
            # An id that makes a character of its own: without one nothing is answered.
            logit_bias=[[count - 1, 1000.0]],
        )
        best = answer["completion_probabilities"][0]["top_logprobs"]
        return [e["logprob"] for e in sorted(best, key=lambda entry: entry["id"])]
