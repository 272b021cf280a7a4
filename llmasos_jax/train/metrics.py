"""What a run reports: names, units and formulas.

| name | unit | what |
|---|---|---|
| step | steps | optimizer steps done, from 1 |
| tokens | tokens | positions that the model has read since step 1, padding included |
| loss | nats per token | what is differentiated: mean negative log-likelihood plus z-loss, plus the
| | | means of further terms (`nsp_loss`); of some objectives in other units, see `UNITS`; of
| | | "distill" (1 - w) nll + w T^2 kl, see `train/distill.py` |
| nll | nats per token | mean negative log-likelihood; of the masked tokens alone in "mlm" |
| perplexity | | exp(nll), where the nats are of tokens; others (`UNITS`) have none |
| accuracy | share | targets that have the largest logit (and other sums of the objective) |
| kl | nats per token | "distill": divergence of the teacher from the model, both at temperature T |
| margin, chosen_reward, rejected_reward | nats per pair | "dpo": see `train/preference.py` |
| nsp_loss, sop_loss | nats per row | of the score for pairs of sentences |
| nsp_accuracy, sop_accuracy | share | rows whose pair is told right |
| macro_f1 | share | labelled texts: mean of F1 over the labels that occur |
| mse, pearson | squared units, - | "regress": mean squared error; Pearson's r |
| learning_rate | | of this step |
| grad_norm | | global L2 norm of the gradient, before clipping |
| param_norm, update_norm | | global L2 norms: of the weights before the step, of their change |
| loss_scale | | float16: what the next step's loss is multiplied by (`train/scaling.py`) |
| skipped_steps | steps | float16: left out since step 1, because a gradient was not finite |
| overflow | 0 or 1 | float16: this step was; its loss and norms may then be no numbers |
| spike | 0 or 1 | `optim.spike_factor`: this step was left out (`train/spikes.py`) |
| spikes | steps | left out since step 1, because the gradient was far above its usual norm |
| usual_grad_norm | | running mean of `grad_norm`, what it is compared with |
| tokens_per_s | tokens per second | all positions of the batches since the last line |
| step_time_s | seconds | per step since the last line, evaluation and saving left out |
| mfu | share | see `mfu` |
| data_wait | share | of the step time that the loop waited for the next batch |
| heldout_loss, heldout_perplexity, heldout_tokens | nats per token, -, tokens | on held-out text;
| | | with an objective of `UNITS` heldout_tokens counts what its loss is a mean over |
| heldout_loss/NAME | nats per token | of the held-out text of one part of `data.mixture` |
| heldout_accuracy, heldout_nsp_loss, ... | as above | the objective's own, on held-out text |
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_jax.train.sums import LossSum

# Peak floating-point operations per second of one JAX device, dense bfloat16 with float32 sums,
# from the makers' data sheets. A v2, v3 or 7x device is half a chip.
PEAK_FLOPS: Mapping[str, float] = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}

# Of the loop, not of a step.
SPEEDS = ("tokens_per_s", "step_time_s", "mfu", "data_wait")

# What a loss is that is not of tokens: such objectives have no perplexity.
UNITS: Mapping[str, str] = {
    "classify": "nats per text",
    "classify_tokens": "nats per word",
    "dpo": "nats per pair",
    "regress": "squared error",
    "similarity": "nats per anchor",
}


@dataclass(frozen=True)
class Speed:
    """What turns seconds into tokens per second and MFU.

    Attributes:
      tokens_per_step: positions that the model reads in one step, over all devices.
      flops_per_token: of one forward and backward pass.
      peak_flops: of one device, per second.
      peak_note: where that figure comes from.
      num_devices: of the mesh.
    """

    tokens_per_step: int
    flops_per_token: float
    peak_flops: float
    peak_note: str
    num_devices: int


def mfu(flops_per_token: float, tokens_per_s: float, peak_flops: float, num_devices: int) -> float:
    """Model FLOPs utilisation (Chowdhery et al., 2022, arXiv 2204.02311, appendix B).

        mfu = flops_per_token * tokens_per_s / (peak_flops * num_devices)
        flops_per_token = 6 * (parameters that go into products) + attention's products
                          (`llmasos_jax.models.count.flops_per_token`)

    What is computed twice to save memory does not count.

    Args:
      flops_per_token: floating-point operations of one token's forward and backward pass.
      tokens_per_s: of the whole run.
      peak_flops: operations per second of one device, see `peak_flops`.
      num_devices: devices of the mesh.

    Example:
      >>> mfu(6e9, 10_000.0, 100e12, 2)
      0.3
    """
    return flops_per_token * tokens_per_s / (peak_flops * num_devices)


def peak_flops(device: Any) -> tuple[float, str]:
    """The most floating-point operations per second of a device, and where the figure comes from.

    Accelerators: the data sheet's bfloat16 peak. A CPU has no such figure that holds: a float32
    product of 1024 x 1024 matrices is timed once per process (about 0.3 s), and the devices that a
    host pretends to have share it. NaN for a device that is not in `PEAK_FLOPS`.
    """
    if device.platform == "cpu":
        shared = len(jax.local_devices(backend="cpu"))
        return _measured_cpu_flops() / shared, "float32 matrix product measured on this CPU"
    # "NVIDIA H100 80GB HBM3" is an "NVIDIA H100": the longest name that it starts with.
    known = [name for name in PEAK_FLOPS if device.device_kind.startswith(name)]
    if not known:
        return math.nan, f'unknown for "{device.device_kind}"'
    return PEAK_FLOPS[max(known, key=len)], "bfloat16 peak of the data sheet"


@functools.cache
def _measured_cpu_flops(size: int = 1024, seconds: float = 0.3) -> float:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        product = jax.jit(lambda a: a @ a)
        a = jnp.full((size, size), 1.0 / size, jnp.float32)
        product(a).block_until_ready()
        best, end = math.inf, time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            product(a).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def perplexity(nll: float) -> float:
    """exp(nats per token); infinite where that is beyond a float.

    Example:
      >>> perplexity(0.0), perplexity(1e4)
      (1.0, inf)
    """
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def step_values(metrics: Any, objective: str) -> dict[str, float]:
    """Turns the `StepMetrics` of one step, already on the host, into named values.

    Args:
      metrics: of the step.
      objective: `config.objective.name`.
    """
    nll = float(metrics.nll)
    return {
        "loss": float(metrics.loss),
        "nll": nll,
        **_perplexity("perplexity", nll, objective),
        **{name: float(value) for name, value in metrics.extra.items()},
        "learning_rate": float(metrics.learning_rate),
        "grad_norm": float(metrics.grad_norm),
        "param_norm": float(metrics.param_norm),
        "update_norm": float(metrics.update_norm),
    }


def heldout_values(total: LossSum, objective: str) -> dict[str, float]:
    """Held-out loss and perplexity per token, and an objective's own, from sums over all text.

    Args:
      total: the sums.
      objective: `config.objective.name`.

    Example:
      >>> total = LossSum(*(jnp.float32(x) for x in (8, 8, 4)), {"accuracy": jnp.float32(1)})
      >>> values = heldout_values(total, "causal")
      >>> values["heldout_loss"], values["heldout_accuracy"], values["heldout_tokens"]
      (2.0, 0.25, 4.0)
      >>> "heldout_perplexity" in values, "heldout_perplexity" in heldout_values(total, "classify")
      (True, False)
    """
    means = {name: float(value) for name, value in total.means().items()}
    nll = means.pop("nll")
    return {
        "heldout_loss": means.pop("loss"),
        **_perplexity("heldout_perplexity", nll, objective),
        "heldout_tokens": float(total.weight_sum),
        **{f"heldout_{name}": value for name, value in means.items()},
    }


def losses_by_part(parts: Mapping[str | None, LossSum]) -> dict[str, float]:
    """The held-out loss of each part of a mixture, under its name; nothing where there is none.

    Example:
      >>> total = LossSum(*(jnp.float32(x) for x in (8, 8, 4)))
      >>> losses_by_part({"code": total}), losses_by_part({None: total})
      ({'heldout_loss/code': 2.0}, {})
    """
    return {
        f"heldout_loss/{name}": float(total.means()["loss"])
        for name, total in parts.items()
        if name is not None and total.weight_sum
    }


def _perplexity(name: str, nll: float, objective: str) -> dict[str, float]:
    """The perplexity under its name; nothing where the nats are not of tokens."""
    return {} if objective in UNITS else {name: perplexity(nll)}
