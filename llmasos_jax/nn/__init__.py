"""The parts of a Transformer, as Flax NNX modules that own weights and call functions."""
