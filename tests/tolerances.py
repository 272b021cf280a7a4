"""Every tolerance of the tests, float32. They are never loosened to make a test pass."""

PARITY = 1e-6  # one function against its reference
SIMPLE = 1e-5  # a layer, a loss, a gradient, one run against the same run sharded otherwise
WHOLE_MODEL = 1e-4  # logits of a whole model, across compiled shapes or frameworks
