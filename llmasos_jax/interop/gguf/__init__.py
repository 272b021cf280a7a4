"""GGUF, the one-file format of llama.cpp, read into ours."""
