"""Serves a model over HTTP, as OpenAI's clients speak it, with a chat page at /.

SIGTERM lets requests that run end, within --drain-s; a second one does not.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from llmasos_jax.cli.bench import numbers
from llmasos_jax.cli.options import add_allow_code, add_quantize, add_source, note
from llmasos_jax.errors import GenerationError, MissingExtraError

KEYS = "LLMASOS_API_KEYS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos serve`."""
    parser.add_argument(
        "model", metavar="MODEL", help="what `llmasos generate` reads, or an encoder"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any (%(default)s)")
    parser.add_argument("--model-name", metavar="NAME", help="what requests call it (its own name)")
    parser.add_argument(
        "--embeddings", metavar="MODEL", help="an encoder for /v1/embeddings beside it"
    )
    parser.add_argument(
        "--batch-sizes",
        type=numbers,
        default=(1, 16),
        metavar="N,N",
        help="texts that one step writes, each a compiled shape (1,16)",
    )
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a text (the model's)")
    parser.add_argument(
        "--num-pages", type=int, metavar="N", help="pages of 128 tokens (by memory)"
    )
    parser.add_argument(
        "--max-prefill-tokens",
        type=int,
        default=512,
        metavar="N",
        help="of prompts, read between two steps of those who decode (%(default)s)",
    )
    parser.add_argument(
        "--propose",
        type=int,
        default=0,
        metavar="N",
        help="tokens that a lone text looks up in itself and checks in one step (%(default)s: off)",
    )
    parser.add_argument(
        "--max-queue", type=int, default=256, metavar="N", help="texts that may wait (%(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of one text (the context)")
    parser.add_argument(
        "--max-body-mb", type=float, default=8.0, metavar="MB", help="of a request (%(default)s)"
    )
    parser.add_argument(
        "--timeout-s", type=float, default=600.0, metavar="S", help="of a request (%(default)s)"
    )
    parser.add_argument(
        "--drain-s",
        type=float,
        default=30.0,
        metavar="S",
        help="for the last requests (%(default)s)",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"one that requests have to send; may be repeated; also ${KEYS}, by commas",
    )
    parser.add_argument("--verbose", action="store_true", help="a line for each request")
    add_source(parser)
    add_quantize(parser)
    add_allow_code(parser)


def run(args: argparse.Namespace) -> None:
    """Loads, compiles, listens."""
    for name in ("timeout_s", "drain_s", "max_body_mb"):
        if not getattr(args, name) > 0:
            raise GenerationError(
                f"--{name.replace('_', '-')}={getattr(args, name)}; give more than 0"
            )
    try:
        from llmasos_jax.serve.run import address, listen, serve
        from llmasos_jax.serve.service import Service
    except ImportError as error:
        raise MissingExtraError(
            f"the server needs fastapi, uvicorn and prometheus-client ({error}); "
            "pip install 'llmasos-jax[serve]'"
        ) from error
    from llmasos_jax.parallel.compile_cache import use_compile_cache
    from llmasos_jax.serve.options import ServeOptions

    listening = listen(args.host, args.port)  # before minutes of loading and compiling
    use_compile_cache()
    from llmasos_jax.generate.load import load_model

    options: dict[str, Any] = {"allow_code": args.allow_code}
    model = load_model(
        args.model,
        quantize=args.quantize,
        revision=args.revision,
        ignore=args.ignore,
        **options,
    )
    engine = None
    if model.config.causal and not model.config.encoder.num_layers:
        engine = _engine(model, args)
    name = args.model_name or model.manifest.name
    embedder = (name, model) if engine is None else None
    if args.embeddings is not None:
        found = load_model(args.embeddings, **options)
        embedder = (found.manifest.name, found)
    keys = (*args.api_key, *filter(None, os.environ.get(KEYS, "").split(",")))
    limits = ServeOptions(
        model_name=name,
        api_keys=keys,
        max_body_bytes=round(args.max_body_mb * 2**20),
        max_tokens=args.max_tokens,
        timeout_s=args.timeout_s,
        drain_s=args.drain_s,
    )
    service = Service(engine, embedder, limits)
    serves = ", ".join(service.names)
    locked = f"{len(keys)} API keys" if keys else "no API key is asked for"
    note(f"{model!r}")
    serve(
        service,
        listening,
        is_verbose=args.verbose,
        on_start=lambda: note(f"serves {serves} at {address(listening)} ({locked}); Ctrl-C stops"),
    )


def _engine(model: Any, args: argparse.Namespace) -> Any:
    from llmasos_jax.engine import EngineOptions, start_engine
    from llmasos_jax.progress import Progress

    options = EngineOptions(
        batch_sizes=args.batch_sizes,
        num_pages=args.num_pages,
        context=args.context,
        max_queue=args.max_queue,
        max_prefill_tokens=args.max_prefill_tokens,
        num_proposed=args.propose,
    )
    engine = start_engine(model, options)
    with Progress("Compiling", total=engine.num_programs) as progress:
        engine.warm_up(lambda what: progress.advance(1, what))
    return engine
