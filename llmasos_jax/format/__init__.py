"""The LLMasOS model format 1: `model.json` and safetensors. The standard is `docs/format.md`."""
