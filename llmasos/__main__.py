"""`python -m llmasos` is the command `llmasos`."""

import sys

from llmasos_jax.cli.main import main

sys.exit(main())
