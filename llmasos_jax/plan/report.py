"""A plan: what a run would need and take on a pod. It prints, and shows in a notebook."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmasos_jax.plan.advice import Advice
from llmasos_jax.plan.figures import Figures, to_json
from llmasos_jax.plan.lines import wrapped
from llmasos_jax.plan.picture import draw, to_svg
from llmasos_jax.plan.roofline import Budget, Roofline

_GIB = 1 << 30
_ESTIMATE = (
    "no TPU compiler here: an estimate in closed form; pip install 'llmasos-jax[tpu]' for the real "
    "one"
)


@dataclass(frozen=True)
class Plan:
    """What a run would need and take on a pod. All sizes are of one device, all times of one step.

    Attributes:
      name: of the run.
      topology: "v5e:16x16", with its slices.
      num_chips: of all slices.
      peak_flops: of one device, bfloat16 operations per second.
      available: bytes of HBM of one device: what the compiler leaves to a program.
      fits: whether the step does.
      source: "compiler", or "closed form" where it is not installed.
      figures: all that compiling gave.
      roofline: None where the step does not fit.
      budget: the time of all tokens, at the lower bound.
      advice: what to change where it does not fit.
      from_cache: whether it was compiled at an earlier call.

    Example:
      >>> import llmasos_jax
      >>> plan = llmasos_jax.plan("tiny", "v5e:2x2")  # doctest: +SKIP
      >>> plan.fits, plan.roofline.bound_by  # doctest: +SKIP
      (True, 'memory')
    """

    name: str
    topology: str
    num_chips: int
    peak_flops: float
    available: int
    fits: bool
    source: str
    figures: Figures
    roofline: Roofline | None
    budget: Budget | None
    advice: tuple[Advice, ...] = ()
    from_cache: bool = False

    @property
    def num_devices(self) -> int:
        """That JAX sees."""
        total = 1
        for size in self.figures.mesh.values():
            total *= size
        return total

    @property
    def tokens_per_s(self) -> float | None:
        """Of all chips, an upper bound."""
        return self.figures.tokens / self.roofline.bound_s if self.roofline else None

    @property
    def mfu(self) -> float | None:
        """An upper bound: model operations over what all chips can do in the bound's time."""
        if self.roofline is None:
            return None
        return self.figures.model_flops / (
            self.roofline.bound_s * self.peak_flops * self.num_devices
        )

    def sections(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """Titles, each with names and values, for people."""
        yield "", self._head()
        yield "memory of a device, GiB", self._memory()
        if self.figures.buffers:
            yield "largest arrays at the fullest moment", self._buffers()
        if self.figures.work is not None and self.roofline is not None:
            yield "a step of a device", self._work()
            if self.figures.traffic:
                yield "collectives of a step", self._traffic()
            yield "least time of a step", self._times()
            yield "upper bounds, from the lower bound of the step's time", self._bounds()
        if self.advice:
            told = [*self._too_few(), *map(str, self.advice)]
            yield "what to change", [("", text) for text in told]

    def _too_few(self) -> list[str]:
        """Where parameters and optimizer alone are too much, how many devices hold them."""
        state = self.figures.state.parameters + self.figures.state.optimizer
        if state <= self.available:
            return []
        # Cut over all devices there are; replicas hold them again.
        least = -(-state * self.num_devices // self.figures.mesh.get("data", 1) // self.available)
        return [
            f"parameters and optimizer alone take {state / _GIB:.1f} GiB: cut them over at least "
            f"{least:,} devices (a larger --topology, and mesh.fsdp with it), beside what follows"
        ]

    def _head(self) -> list[tuple[str, str]]:
        figures = self.figures
        versions = ", ".join(f"{n} {v}" for n, v in figures.versions.items() if n != "jaxlib")
        mesh = " x ".join(f"{n} {size}" for n, size in figures.mesh.items() if size > 1)
        devices = f"{self.num_chips:,} chips"
        if self.num_devices != self.num_chips:
            devices += f", {self.num_devices:,} devices"
        said = "closed form, with" if self._is_estimate else "compiled by"
        seconds = ", ".join(f"{name} {s:.0f} s" for name, s in figures.seconds.items())
        again = " (from the cache)" if self.from_cache else ""
        first = [("", _ESTIMATE)] if self._is_estimate else []
        return [
            *first,
            ("plan", f"{self.name} on {self.topology}, {devices}"),
            ("model", f"{figures.num_parameters:,} parameters"),
            ("batch", f"{figures.tokens:,} tokens a step"),
            ("mesh", mesh or "1 device"),
            ("fits", self.verdict),
            ("source", f"{said} {versions}{again}"),
            *([("took", f"{seconds}; {figures.host_gib:.1f} GiB here")] if seconds else []),
        ]

    @property
    def _is_estimate(self) -> bool:
        return self.source == "closed form"

    @property
    def verdict(self) -> str:
        """Whether the step fits, and by how much, in words."""
        room = f"{self.available / _GIB:.2f} GiB"
        if trouble := self.figures.out_of_memory:
            over = (trouble.needed - trouble.available) / _GIB
            return (
                f"NO: {trouble.needed / _GIB:.2f} of {room} for {trouble.what}, {over:.2f} too much"
            )
        memory = self.figures.memory
        if memory is None:
            return "not known"
        answer = "yes" if self.fits else "NO"
        if self._is_estimate:
            answer += ", by an estimate"
        return f"{answer}: {memory.peak / _GIB:.2f} of {room}"

    def _memory(self) -> list[tuple[str, str]]:
        state, memory = self.figures.state, self.figures.memory
        rows = [
            ("parameters", _gib(state.parameters)),
            ("optimizer", _gib(state.optimizer)),
            ("batch", _gib(state.batch)),
        ]
        if memory is not None:
            rest = memory.argument - state.parameters - state.optimizer - state.batch
            rows += [
                ("padding", f"{_gib(rest)}  of their layout, and step and key"),
                ("arguments", f"{_gib(memory.argument)}  the four above"),
                ("temporaries", f"{_gib(memory.temporary)}  activations, gathered weights, "
                 "gradients"),
                ("peak", f"{_gib(memory.peak)}  all of them at the fullest moment"),
            ]  # fmt: skip
            if memory.host_temporary or memory.host_argument:
                host = memory.host_temporary + memory.host_argument
                rows.append(("on the host", _gib(host)))
        return rows

    def _buffers(self) -> list[tuple[str, str]]:
        rows = [
            (_gib(b.num_bytes), f"{b.shape}  {b.kind}  {_short(b.source)}")
            for b in self.figures.buffers[:6]
        ]
        if self.figures.memory is not None:
            rows.append(
                (_gib(self.figures.live_bytes), "all, by the program's order: an estimate; the "
                 "compiler's is the peak"),
            )  # fmt: skip
        return rows

    def _work(self) -> list[tuple[str, str]]:
        work, figures = self.figures.work, self.figures
        if work is None:
            return []
        model = figures.model_flops / self.num_devices
        done = work.flops + work.kernel_flops
        how = "in closed form" if self._is_estimate else "read off the compiled program"
        rows = [
            ("model FLOPs", f"{_si(model)}  forward and backward, nothing twice"),
            ("executed", f"{_si(done)}  {done / model:.2f} x the model's"),
            ("  products", f"{_si(work.flops)}  {how}"),
            ("  kernels", f"{_si(work.kernel_flops)}  in closed form: "
             + (", ".join(f"{n} {_kernel(k)}" for k, n in work.kernels.items()) or "none")),
            ("HBM traffic", f"{_si(work.hbm_bytes)}B  " + (
                "weights, state and what is kept: a real step has several times as much"
                if self._is_estimate else "operands and results: an estimate")),
        ]  # fmt: skip
        if work.cycles is not None:
            text = f"{_si(work.cycles)}  the compiler's estimate; no kernels, no collectives"
            rows.append(("cycles", text))
        if work.opaque:
            rows.append(("not counted", f"kernels {', '.join(work.opaque)}"))
        return rows + [("note", doubt) for doubt in work.doubts[:5]]

    def _traffic(self) -> list[tuple[str, str]]:
        rows = []
        for traffic in self.figures.traffic:
            axes = ", ".join(traffic.axes) or "not known"
            text = f"{axes:<16} {_si(traffic.link_bytes)}B sent, {traffic.runs:,} run"
            text += "s" if traffic.runs != 1 else ""
            if traffic.network_bytes:
                text += f", {_si(traffic.network_bytes)}B of it between slices"
            rows.append((traffic.kind, text))
        total = sum(traffic.link_bytes for traffic in self.figures.traffic)
        return [*rows, ("in all", f"{'':<16} {_si(total)}B sent")]

    def _times(self) -> list[tuple[str, str]]:
        line = self.roofline
        if line is None:
            return []
        said = {
            "compute": "products and kernels at the chip's peak",
            "memory": "HBM traffic at its bandwidth",
            "links": "the busiest axis of the torus",
            "network": "between slices",
        }
        parts = {name: s for name, s in line.parts.items() if s or name != "network"}
        rows = [(name, f"{_seconds(s)}  {said[name]}") for name, s in parts.items()]
        if line.cycles_s is not None:
            text = f"{_seconds(line.cycles_s)}  the compiler's, at the clock; not in the bound"
            rows.append(("cycles", text))
        text = f"{_seconds(line.bound_s)}  by {line.bound_by}: all overlaps, nothing waits"
        return [*rows, ("lower bound", text)]

    def _bounds(self) -> list[tuple[str, str]]:
        if self.tokens_per_s is None or self.mfu is None:
            return []
        rate = self.tokens_per_s
        rows = [
            ("tokens/s", f"at most {rate:,.0f}, {rate / self.num_chips:,.0f} a chip"),
            ("MFU", f"at most {self.mfu:.1%}"),
        ]
        if self.budget is not None:
            hours = f"at least {self.budget.hours:,.1f} hours"
            chips = f"{self.budget.chip_hours:,.0f} chip-hours"
            text = f"{hours}, {chips} ({self.budget.steps:,} steps)"
            rows.append((f"{_count(self.budget.tokens)} tokens", text))
        return rows

    def __str__(self) -> str:
        parts = []
        for title, rows in self.sections():
            # Names, or sizes of arrays.
            least = 0 if rows[0][0].lstrip()[:1].isdigit() else 12
            width = max([least, *(len(name) for name, _ in rows)])
            edge = "  " if title else ""
            lines = [
                wrapped(f"{edge}{name:<{width}}  ", value, len(edge) + width + 2 + _column(value))
                if name
                else wrapped(edge, value, len(edge) + 2)
                for name, value in rows
            ]
            parts.append("\n".join([title, *lines] if title else lines))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        rows = []
        for title, pairs in self.sections():
            if title:
                rows.append(f"<tr><th colspan=2 style='text-align:left'>{html.escape(title)}</th>")
            for name, value in pairs:
                cells = (html.escape(name), html.escape(value))
                rows.append(
                    f"<tr><td style='text-align:left'>{cells[0]}</td>"
                    f"<td style='text-align:left'><pre style='margin:0'>{cells[1]}</pre></td></tr>"
                )
        return f"{to_svg(draw(self))}<table>{''.join(rows)}</table>"

    def to_dict(self) -> dict[str, Any]:
        """All figures under their names, for JSON."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("figures", "roofline", "budget", "advice")
        }
        line = self.roofline
        return values | {
            "num_devices": self.num_devices,
            **to_json(self.figures),
            "roofline": None
            if line is None
            else {**dataclasses.asdict(line), "bound_s": line.bound_s, "bound_by": line.bound_by},
            "tokens_per_s_at_most": self.tokens_per_s,
            "mfu_at_most": self.mfu,
            "budget_at_least": None if self.budget is None else dataclasses.asdict(self.budget),
            "advice": [dataclasses.asdict(advice) for advice in self.advice],
        }


def _column(value: str) -> int:
    """Where the words after a number with its unit begin; 0 without one."""
    found = re.match(r" *[\d,.]+ ?[A-Za-z]*  +", value)
    return found.end() if found else 0


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:8.3f}"


def _si(number: float) -> str:
    """Four digits and a prefix: "407.2 T"."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:8,.2f} {unit}"
    return f"{number / 1e3:8,.2f} k"


def _seconds(seconds: float) -> str:
    return f"{seconds:8.3f} s " if seconds >= 1 else f"{seconds * 1e3:8.3f} ms"


def _kernel(name: str) -> str:
    return name.removesuffix("_residuals").removesuffix("_no").removesuffix("_segmented")


def _short(source: str) -> str:
    """The end of a JAX operation's name, which says where in the model it is."""
    parts = source.split("/")
    dull = ("while", "body", "closed_call", "checkpoint", "shard_map", "eval_jaxpr")
    return "/".join([part for part in parts if part not in dull][-4:])


def _count(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:,.0f}"
