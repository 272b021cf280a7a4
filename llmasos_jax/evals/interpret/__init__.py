"""Looks inside of models: attention maps, logit lens, attributions, patching, probes."""
