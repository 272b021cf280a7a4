"""What a notebook calls: the verbs of the command line as functions, and the standard's class."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmasos_jax.config.build import Source, load_config
from llmasos_jax.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from llmasos_jax.config.schema import Config
    from llmasos_jax.data.prepared.result import Prepared
    from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
    from llmasos_jax.evals.export.run import ExportResult
    from llmasos_jax.evals.parity.report import Parity
    from llmasos_jax.format.convert import ConvertResult
    from llmasos_jax.generate.model import Model
    from llmasos_jax.launch.run import Launch
    from llmasos_jax.plan.report import Plan
    from llmasos_jax.sweep.executors.executor import Executor
    from llmasos_jax.sweep.launch import SweepLaunch
    from llmasos_jax.sweep.report.write import SweepReport
    from llmasos_jax.train.run import TrainResult
    from llmasos_jax.verify.result import Verified


def train(
    config: Source, workdir: str | os.PathLike[str] | None = None, hooks: Sequence[Any] = ()
) -> TrainResult:
    """Trains a config, or goes on where its folder stopped.

    On several hosts every one of them calls this, before anything that computes; `config.hosts` or
    the environment says who belongs to the run (docs/hosts.md). A host that is lost ends the
    others with status 3 and its name.

    Args:
      config: a ConfigDict, a `Config`, a path, or the name of a packaged config.
      workdir: the training folder; None makes a new one, `runs/<name>-<time>`.
      hooks: called beside those that the config names.

    Returns:
      What the run came to; a notebook shows it as a table.

    Raises:
      ConfigError: the config is wrong, or differs from the run in `workdir` where it must not.
      TrainingFailedError: the loss is no longer finite.
      PreemptedError: the process was asked to stop; the same call goes on.
    """
    from llmasos_jax.parallel import distributed

    resolved = load_config(config)
    distributed.join(resolved.hosts)  # before JAX looks for its devices

    from llmasos_jax.train.run import run

    try:
        _check_can_be_kept(resolved)
        return run(resolved, _workdir(workdir, resolved), hooks, _sampler())
    except BaseException as error:
        distributed.failed(error)
        raise


def finetune(
    config: Source, workdir: str | os.PathLike[str] | None = None, hooks: Sequence[Any] = ()
) -> TrainResult:
    """Trains a pretrained model further, or goes on where its folder stopped.

    Args:
      config: as `train` takes it, with `finetune.base`; `model` may be left to the base.
      workdir: the training folder; None makes a new one, `runs/<name>-<time>`.
      hooks: called beside those that the config names.

    Returns:
      What the run came to. `load_model(workdir)` is the model, with what it learned.

    Raises:
      ConfigError: the config is wrong, or differs from the run in `workdir` where it must not.
      FormatError, HubError, CheckpointError: the base cannot be opened.
      DataError: an example is wrong; the message has its file and line.
      TrainingFailedError: the loss is no longer finite.
      PreemptedError: the process was asked to stop; the same call goes on.
    """
    from llmasos_jax.config.build import hosts_of
    from llmasos_jax.parallel import distributed

    distributed.join(hosts_of(config))  # before JAX looks for its devices

    from llmasos_jax.finetune.resolve import resolve
    from llmasos_jax.train.run import run

    try:
        resolved, base = resolve(config)
        folder = _workdir(workdir, resolved)
        return run(resolved, folder, hooks, _sampler(), base=base)
    except BaseException as error:
        distributed.failed(error)
        raise


def prepare_data(
    config: Source, out: str | os.PathLike[str], workers: int | None = None
) -> Prepared:
    """Tokenises a config's text into a folder, or goes on where that was stopped.

    A run reads it with `data.source="prepared"` and `data.path=out`; its batches are those of a run
    that reads the text itself. The files do not depend on `workers`.

    Args:
      config: as in `train`; `data`, the tokenizer and the objective are read.
      out: a new folder, or one that the same config began.
      workers: processes; None takes one for each core.

    Returns:
      What is in the folder, and what was dropped and why.

    Raises:
      ConfigError: the config has a mixture, or learns from records.
      DataError: `out` was begun with other settings (the message lists them), holds something else
        or cannot be written; or the text cannot be read.
      TokenizerError: the tokenizer cannot be made.
    """
    from llmasos_jax.config.files import cache_folder
    from llmasos_jax.data.prepared.run import run
    from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
    from llmasos_jax.finetune.reading import reading_of
    from llmasos_jax.train.objective import build_objective

    cache = cache_folder() / "data"
    resolved, tokenizer = reading_of(config, cache)
    objective = build_objective(resolved, vocabulary_of(tokenizer, resolved.model.vocab_size))
    if objective.examples is not None:
        raise ConfigError(
            f'objective.name="{resolved.objective.name}" learns from records, which a run reads as '
            "they are; prepare texts"
        )
    return run(
        resolved.data,
        tokenizer,
        Path(out),
        cache,
        workers=workers,
        by_sentence=objective.by_sentence,
    )


def _workdir(workdir: str | os.PathLike[str] | None, config: Config) -> Path:
    if workdir is not None:
        return Path(workdir)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.name}-{now}"


def _check_can_be_kept(config: Config) -> None:
    """Raises ConfigError for a model outside the format's bounds: it could not be written later."""
    from llmasos_jax.format.manifest import Generation, Manifest, to_json

    start_id = 0 if config.model.encoder.num_layers else None  # the tokenizer will say which
    generation = Generation(decoder_start_id=start_id)
    try:
        to_json(Manifest(config.name, config.model, generation=generation))
    except FormatError as error:
        text = str(error).removeprefix("model.json: ").replace("parameters.", "model.")
        raise ConfigError(text) from error


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    allow_code: bool = False,
    revision: str | None = None,
    ignore: Sequence[str] = (),
) -> ConvertResult:
    """Writes an LLMasOS model from anything that `load_model` reads.

    Args:
      source: a training folder or a checkpoint's, a Hugging Face folder, a .gguf file, a model, or
        a name in the library or on the hub.
      out: a new folder, or a model's folder, which is replaced in one step.
      step: which checkpoint of a training folder; None takes the newest.
      allow_code: whether parts may be called "package.module:name", which imports that module.
      revision: a branch, tag or commit of a name on the hub.
      ignore: keys of a foreign config and tensors of foreign files that may get lost.

    Returns:
      What was written.

    Raises:
      CheckpointError: `source` holds no whole checkpoint.
      HubError: a name that is not known, or whose files cannot be had.
      FormatError: `source` cannot be read, or `out` cannot be written.
    """
    from llmasos_jax.format.convert import convert_files
    from llmasos_jax.hub.open import open_model

    files = open_model(source, step, allow_code=allow_code, revision=revision, ignore=ignore)
    return convert_files(files, out, source=source)


def export(
    source: str | os.PathLike[str],
    to: str = "hf",
    out: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    step: int | None = None,
    allow_code: bool = False,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    unproven: bool = False,
    seed: int = 0,
    iree: bool = True,
) -> ExportResult:
    """Writes a model in another program's format, and proves it there before it is kept.

    What was written is opened by that program and run on a fixed text and on random ids of several
    lengths with padding, and through its cache. Only if every output is that of the model with the
    weights as they were written does the folder get its name; `parity.json` in it says what was
    compared, and what rounding the weights did.

    Args:
      source: what `load_model` reads.
      to: "hf", a Hugging Face folder, opened with transformers and torch (the extra `parity`);
        "gguf", a file for llama.cpp, "onnx", graphs for onnxruntime (both the extra `export`);
        "stablehlo", programs that jax alone runs; "peft", the adapter of a LoRA run alone, opened
        with peft on the run's base.
      out: a new or empty folder; None is the model's name and the target, here.
      dtype: of the weights, as that format calls it; None keeps the model's own.
      step: which checkpoint of a training folder; None takes the newest.
      allow_code: as in `load_model`.
      revision: a branch, tag or commit of a name on the hub.
      ignore: as in `load_model`.
      unproven: keeps it without a proof.
      seed: of the ids.
      iree: whether programs of StableHLO are compiled and run by IREE as well, where it is
        installed; what comes of it stands in the receipt.

    Returns:
      What was written and how far it is from the model.

    Raises:
      ExportError: it differs by more than 1e-4 of the largest number of an output (more where
        llama.cpp computes in fewer bits: docs/gguf.md), or does not open there; nothing is kept.
      FormatError: the format cannot say this model or this dtype, or `out` cannot be written.
      MissingExtraError: the other program is not installed, and `unproven` was not said.

    Example:
      >>> import tempfile
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.format.manifest import Manifest
      >>> from llmasos_jax.generate.load import init_model
      >>> with tempfile.TemporaryDirectory() as name:
      ...     model = init_model(Manifest("m", ModelConfig(40, 64, 1)))
      ...     folder = model.save(Path(name, "m"))
      ...     result = export(folder, "hf", Path(name, "hf"), unproven=True)
      ...     sorted(p.name for p in result.path.iterdir())
      ['config.json', 'model.safetensors', 'parity.json']
      >>> result.saved_class, result.proven
      ('LlamaForCausalLM', False)
    """
    from llmasos_jax.evals.export.run import export_model

    folder = Path(f"{Path(os.fspath(source)).name or 'model'}-{to}") if out is None else Path(out)
    return export_model(
        source,
        folder,
        to=to,
        dtype=dtype,
        step=step,
        allow_code=allow_code,
        revision=revision,
        ignore=ignore,
        unproven=unproven,
        seed=seed,
        iree=iree,
    )


def plan(
    config: Source,
    topology: str,
    *,
    slices: int | None = None,
    tokens: float | str | None = None,
) -> Plan:
    """Says what a run would need and take on a TPU pod, with its real compiler and without a pod.

    The training step is compiled for the pod's chips, in a process of its own; this takes minutes
    for a large model. The same call again is answered from a cache. Where the compiler is not
    installed (the extra `tpu`) it is an estimate in closed form, and says so (`plan.source`).

    Args:
      config: as in `train`; its mesh has to be one of the pod's devices.
      topology: chips and their torus: "v5e:16x16", "v5p:4x4x4"; of v4, v5e, v5p, v6e, tpu7x.
      slices: such topologies, joined by a network; None takes `mesh.slices`.
      tokens: to be read in all, 2e12 or "2T"; None takes the steps of the run.

    Returns:
      Memory of a device, what a step does, a lower bound of its time, and where it does not fit
      (`plan.fits`) what to change (`plan.advice`). A notebook shows it with a picture.

    Raises:
      ConfigError: the config is wrong, there is no such topology, the mesh is not one of it, or
        `tokens` is no number above 0.
      MissingExtraError: the TPU compiler is not installed, and there is no estimate in closed form
        for the model (an encoder-decoder).
      PlanFailedError: the compiler crashed.
    """
    from llmasos_jax.plan.run import make_plan, parse_tokens

    number = None if tokens is None else parse_tokens(str(tokens))
    return make_plan(load_config(config), topology, slices, number)


def sweep(
    path: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    together: int = 64,
) -> SweepReport:
    """Runs an ablation sweep, or goes on where its folder stopped.

    Args:
      path: a Python file with `sweep(add)` (see `llmasos_jax.sweep`).
      workdir: the sweep's folder: a training folder for each point, and the report.
      overrides: of the config that the sweep is over, by paths ("train.steps").
      executor: where jobs run (`llmasos_jax.sweep.executors`); None takes processes of this
        machine.
      together: points that share one program at most.

    Returns:
      The report, which shows itself in a notebook; `report.html` in the folder has the curves.

    Raises:
      ConfigError: a point is wrong, before anything starts; the message has its name.
      PreemptedError: the process was asked to stop; the same call goes on.
    """
    from llmasos_jax.sweep.run import run_sweep

    texts = {path: str(value) for path, value in (overrides or {}).items()}
    return run_sweep(
        Path(path), Path(workdir), overrides=texts, executor=executor, together=together
    )


def launch(
    config: Source,
    on: str,
    out: str | os.PathLike[str],
    *,
    topology: str | None = None,
    slices: int | None = None,
    **options: Any,
) -> Launch:
    """Writes the files that start a config on a cluster; nothing is started.

    Args:
      config: as in `train`.
      on: "gke" (a JobSet), "xpk", "slurm" or "tpu-vm".
      out: folder for the files.
      topology: TPU chips of a slice, such as "v5e:16x16"; not for Slurm.
      slices: of the run; None takes `mesh.slices`.
      options: what only you know, the fields of `launch.options.LaunchOptions`: `workdir` always,
        `image`, `bucket`, `cluster`, `partition` and so on by the kind of cluster.

    Returns:
      The files, and the command that starts the run.

    Raises:
      ConfigError: something lacks (all of it is listed), is not of use there, or the config's mesh
        is not one of the topology. Nothing has been written then.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as out:
      ...     options = {"workdir": "/shared/run", "partition": "gpu", "time": "24:00:00"}
      ...     made = launch("quickstart", "slurm", out, nodes=2, **options)
      ...     [file.name for file in made.files], made.hosts
      (['config.json', 'train.sbatch'], 2)
    """
    from llmasos_jax.launch.run import options_of, write_launch

    chosen, resolved = options_of(options, on), load_config(config)
    return write_launch(resolved, on, Path(out), chosen, topology=topology, slices=slices)


def launch_sweep(
    path: str | os.PathLike[str],
    on: str,
    out: str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    topology: str | None = None,
    slices: int | None = None,
    **options: Any,
) -> SweepLaunch:
    """Writes the files that start each point of a sweep on a cluster; nothing is started.

    Args:
      path: of the sweep's file.
      on: "gke", "xpk" or "slurm".
      out: folder for the files: one for each point, `start.sh` and `sweep.json`.
      overrides: of the config that the sweep is over, by paths ("train.steps").
      topology: as in `launch`, of each run.
      slices: as in `launch`.
      options: as in `launch`; `workdir` is the sweep's folder, as the hosts see it.

    Returns:
      The files, and the command that starts all runs.

    Raises:
      ConfigError: as in `launch` and `sweep`, with the point's name. Nothing has been written then.
    """
    from llmasos_jax.launch.run import options_of
    from llmasos_jax.sweep.launch import write_sweep_launch

    return write_sweep_launch(
        Path(path),
        on,
        Path(out),
        options_of(options, on),
        overrides={path: str(value) for path, value in (overrides or {}).items()},
        topology=topology,
        slices=slices,
    )


def verify_resume(
    config: Source,
    *,
    steps: int = 20,
    kill_at: Sequence[int] = (7,),
    hosts: Sequence[int] = (),
    meshes: Sequence[str] = (),
    workdir: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Verified:
    """Kills runs of a config, starts them again, and compares them with one that is not killed.

    The runs are real processes of `llmasos train` (or `finetune`), ended by SIGKILL in a step, and
    while a checkpoint is half written.

    Args:
      config: as in `train`.
      steps: of each run, in place of `train.steps`.
      kill_at: steps in which a run is killed.
      hosts: processes before and after each kill, on CPU devices of this machine; one number for
        all, () for one process.
      meshes: likewise, each "DATAxFSDPxTENSOR"; () takes the config's mesh.
      workdir: an empty folder that keeps all runs; None removes them if they are the same.
      tell: is told what is being done.

    Returns:
      What was compared. On the same devices every bit is equal; elsewhere batches and restored
      leaves are, and losses within 1e-5 relative.

    Raises:
      ConfigError: the config does not train, or the steps and places do not fit each other.
      TrainingFailedError: a run failed, or ended before it was killed.
    """
    from llmasos_jax.config.build import finetune_of
    from llmasos_jax.finetune.resolve import resolve
    from llmasos_jax.verify.run import stages_of, verify

    stages = stages_of(hosts, meshes, len(kill_at))
    folder = None if workdir is None else Path(workdir)
    is_tuning = finetune_of(config).base is not None
    resolved = resolve(config)[0] if is_tuning else load_config(config)
    return verify(resolved, steps, kill_at, stages, folder, tell)


def parity(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    tokens: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    allow_code: bool = False,
    ignore: Sequence[str] = (),
    tick: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Compares two models layer by layer, names the first place where they part, and says why.

    Args:
      a: what `load_model` reads, or "transformers:FOLDER": a Hugging Face folder run by
        transformers and torch (the extra `parity`), the truth for a conversion.
      b: the same; what is found is said of `b`, seen from `a`.
      tokens: in the longest row of random ids; None goes past every window, up to 1024.
      tolerance: largest difference, as a share of the largest number at a place; None is 1e-4,
        more where the models are stored in different types.
      seed: of the ids.
      allow_code: as in `load_model`, for both.
      ignore: as in `load_model`, for both.
      tick: told what is being done.

    Returns:
      What was found; a notebook shows it as a table.

    Raises:
      FormatError: one of them is no model.
      MissingExtraError: "transformers:" without torch and transformers.
      GenerationError: an argument is out of range.
    """
    from llmasos_jax.evals.parity.compare import compare

    return compare(
        a,
        b,
        tokens=tokens,
        tolerance=tolerance,
        seed=seed,
        allow_code=allow_code,
        ignore=ignore,
        tick=tick,
    )


def _sampler() -> Callable[[Config, Tokenizer, Any], str] | None:
    """What writes a text during training; None on several hosts, where no host has all weights."""
    import jax

    from llmasos_jax.generate.sample import write_sample

    return write_sample if jax.process_count() == 1 else None


class LLMasOS:
    """The name under which the LLMasOS standard documents its functions."""

    @staticmethod
    def load_model(source: str | os.PathLike[str], **options: Any) -> Model:
        """The same as `llmasos.load_model`."""
        from llmasos_jax.generate.load import load_model

        return load_model(source, **options)

    @staticmethod
    def init_model(source: str | os.PathLike[str], **options: Any) -> Model:
        """The same as `llmasos.init_model`."""
        from llmasos_jax.generate.load import init_model

        return init_model(source, **options)
