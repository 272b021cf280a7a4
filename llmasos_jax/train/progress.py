"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

from llmasos_jax.errors import PreemptedError
from llmasos_jax.train.hooks import Hook, RunInfo, Values

if TYPE_CHECKING:
    from rich.progress import Progress


class ProgressBar(Hook):
    """A bar with loss, speed and the time that is left; a line per logged step when piped."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._first_done_s: float | None = None

    def on_start(self, run: RunInfo) -> None:
        """Says what is trained and how far it is."""
        cfg = run.config
        self._run, self._start_s = run, time.monotonic()
        moved = "" if run.num_moved is None else f", {run.num_moved:,} trained"
        where = f"from step {run.start_step} of" if run.start_step else "for"
        self._say(
            f"{cfg.name}: {run.num_parameters:,} parameters{moved}, {where} "
            f"{cfg.train.steps:,} steps of {run.speed.tokens_per_step:,} tokens; MFU against "
            f"{run.speed.peak_note}"
        )
        # Before a silence of seconds, or of minutes for a large model.
        self._say(f"compiling the first step for {run.devices}")
        if cfg.optim.warmup_steps >= cfg.train.steps:
            self._say(
                f"note: optim.warmup_steps={cfg.optim.warmup_steps} is not below train.steps="
                f"{cfg.train.steps}: the learning rate rises to the end"
            )
        tuned, width = cfg.finetune, cfg.model.embedding_dim
        if tuned.base is not None and tuned.method == "lora" and tuned.rank > width:
            self._say(
                f"note: finetune.rank={tuned.rank} is above model.embedding_dim={width}, which no "
                "change's rank can be; a lower one says the same with fewer weights"
            )
        if sys.stderr.isatty():
            self._bar = _terminal_bar()
            self._bar.start()
            self._task = self._bar.add_task(
                cfg.name, total=cfg.train.steps, completed=run.start_step, values=""
            )

    def on_step(self, step: int, values: Values) -> None:
        """Moves the bar, or writes a line if the step is one that is logged."""
        if self._first_done_s is None:
            self._first_done_s = time.monotonic()
        if values.get("spike"):
            self._say(
                f"step {step}  left out: its gradient norm is {values['grad_norm']:.3g}, more than "
                f"optim.spike_factor={self._run.config.optim.spike_factor} times the usual one"
            )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=summary(values, short=True))
        elif self._run.is_logged(step):
            total = self._run.config.train.steps
            self._say(f"step {step}/{total}  {summary(values)}{self._left(step)}")

    def on_eval(self, step: int, values: Values) -> None:
        """Writes the held-out loss."""
        told = [f"held-out loss {values['heldout_loss']:.4f}"]
        if "heldout_perplexity" in values:
            told.append(f"perplexity {values['heldout_perplexity']:.2f}")
        if "heldout_kl" in values:
            told.append(f"KL {values['heldout_kl']:.4f}")
        for name, value in values.items():
            if name.endswith(("accuracy", "macro_f1")):
                told.append(f"{_spoken(name)} {value:.1%}")
            elif name.endswith("pearson"):
                told.append(f"{_spoken(name)} {value:.3f}")
        self._say(f"step {step}  {', '.join(told)}")

    def on_sample(self, step: int, text: str) -> None:
        """Writes the text."""
        self._say(f"step {step}  sample:\n{text}")

    def on_checkpoint(self, step: int) -> None:
        """Writes a line, unless there is a bar: saving goes on beside the next steps."""
        if self._bar is None:
            self._say(f"step {step}  saving")

    def on_end(self, step: int, error: BaseException | None) -> None:
        """Takes the bar away and says how it ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        seconds = time.monotonic() - self._start_s
        if error is None:
            self._say(f"step {step}  done in {duration(seconds)}")
        elif not isinstance(error, PreemptedError):
            self._say(f"step {step}  stopped after {duration(seconds)}: {type(error).__name__}")

    def _left(self, step: int) -> str:
        # The first step compiles; it says nothing about the others.
        done, left = step - self._run.start_step - 1, self._run.config.train.steps - step
        if self._first_done_s is None or done < 1:
            return ""
        return f"  {duration((time.monotonic() - self._first_done_s) / done * left)} left"

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _spoken(name: str) -> str:
    """A value's name as a person says it beside "held-out"."""
    return name.removeprefix("heldout_").replace("_", " ")


def summary(values: Values, short: bool = False) -> str:
    """The few values that a person watches.

    Args:
      values: of one step.
      short: whether it has to fit behind a bar, in 80 columns.

    Example:
      >>> summary({"loss": 2.5, "perplexity": 12.18, "learning_rate": 1e-3})
      'loss 2.5000  perplexity 12.18  lr 1.00e-03'
    """
    parts = [f"loss {values['loss']:.4f}"]
    if not short:
        if "perplexity" in values:
            parts.append(f"perplexity {values['perplexity']:.2f}")
        if "kl" in values:
            parts.append(f"KL {values['kl']:.4f}")
        parts.append(f"lr {values['learning_rate']:.2e}")
    if "tokens_per_s" in values:
        parts.append(f"{values['tokens_per_s']:,.0f} tok/s")
    if not math.isnan(values.get("mfu", math.nan)):
        parts.append(f"mfu {values['mfu']:.1%}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as they matter.

    Example:
      >>> duration(7.4), duration(125), duration(7322)
      ('7s', '2m05s', '2h02m')
    """
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _terminal_bar() -> Progress:
    # Here, not above: importing it takes a tenth of a second.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    return Bar(*columns, console=Console(stderr=True))
