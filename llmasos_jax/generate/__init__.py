"""Text from a model: loading, sampling, decoding with a cache, streaming."""
