"""Whole models: the layout of their layers, the Transformer, counts."""
