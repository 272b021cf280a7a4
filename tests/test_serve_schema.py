"""The server against its own OpenAPI description, by schemathesis."""

import os
import subprocess
import sys
from pathlib import Path

from engine_model import MANIFEST
from serving import running

from llmasos_jax.engine import EngineOptions


def test_answers_are_what_the_description_says(tmp_path):
    tool = Path(sys.executable).parent / "schemathesis"
    # No description can say how many tokens a text has, so here is room for all that it sends.
    cfg = MANIFEST.parameters.replace(context_length=2**15)
    options = EngineOptions((1, 4), 128, num_pages=300)
    with running(options, cfg, max_tokens=4) as (url, service):
        found = subprocess.run(
            [tool, "run", f"{url}/openapi.json", "--max-examples=25", "--seed=1"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "NO_COLOR": "1"},
            timeout=300,
        )
        assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
        assert "No issues found" in found.stdout
        assert service.engine.is_open
