"""Speculative decoding: which of the proposed tokens the model would have drawn itself.

One step of the model gives logits behind each of several proposed tokens. Our draws are the largest
of logits plus a noise that depends on (seed, sample, position) alone, so what would be drawn at
each place is known without chance: a proposal is accepted while it is that token, and the first
that is not is replaced by it. The text is then token for token the one that decoding without
proposals gives from the same logits, greedy or sampled, whatever the proposals were; its
distribution is therefore the model's.

    newest token   x | a  b  c      proposed
    drawn behind   a   b  d  .      with the noise of each place
    the text gets  a   b  d         2 accepted, and one more

This differs from the rejection rule (Leviathan et al., 2023, arXiv 2211.17192; Chen et al., 2023,
arXiv 2302.01318), which accepts with probability min(1, p/q), 1 - TV(p, q) in all, and keeps the
distribution but not the text. A draft model that draws with the same noise is accepted here with
probability at least (1 - TV) / (1 + TV) (Daliri et al., 2024, arXiv 2408.07978); proposals without
noise, like those of prompt look-up, with p of the proposed token, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.generate.sampling import SamplingRows, Seen, draw


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Accepted:
    """What became of the proposals.

    Attributes:
      num_b: int32 [B], proposals that were accepted.
      token_bt: int32 [B, T], what comes next in the text: the accepted tokens and one more, so
        `num_b + 1` of each row; 0 behind them. V where the logits of its place are not numbers.
      seen: what stands in the texts, with these tokens.
    """

    num_b: jax.Array
    token_bt: jax.Array
    seen: Seen

    @property
    def next_b(self) -> jax.Array:
        """The newest token of each row, int32 [B]: the one behind the accepted ones."""
        return jnp.take_along_axis(self.token_bt, self.num_b[:, None], axis=1)[:, 0]


def accept(
    logits_btv: jax.Array,
    proposed_bp: jax.Array,
    num_proposed_b: jax.Array,
    seen: Seen,
    position_b: jax.Array,
    rows: SamplingRows,
    allowed_btw: jax.Array | None = None,
) -> Accepted:
    """Accepts each row's proposals up to the first that the model would not have drawn.

    Places are drawn one after the other, as penalties depend on the tokens before, and no further
    than the longest row gets.

    Args:
      logits_btv: float32 [B, T, V]; place 0 is behind the newest token, place t behind proposal
        t - 1.
      proposed_bp: int32 [B, T - 1].
      num_proposed_b: int32 [B], how many of them there are, 0 to T - 1.
      seen: what stands in the texts, without the proposals.
      position_b: int32 [B], where in its text the token of place 0 will stand.
      rows: the sampling options.
      allowed_btw: uint32 [B, T, V / 32 rounded up], what may come at each place (see `draw`) if
        the proposals before it are right; None allows everything.
    """
    b, num_places, num_ids = logits_btv.shape
    # The last place has no proposal to be compared with.
    proposed_bt = jnp.pad(proposed_bp, ((0, 0), (0, 1)))

    def goes_on(state: tuple[Accepted, jax.Array, jax.Array]) -> jax.Array:
        _, goes_b, place = state
        return (place < num_places) & jnp.any(goes_b)

    def step(
        state: tuple[Accepted, jax.Array, jax.Array],
    ) -> tuple[Accepted, jax.Array, jax.Array]:
        so_far, goes_b, place = state

        def here(x_bt: jax.Array) -> jax.Array:
            return lax.dynamic_index_in_dim(x_bt, place, axis=1, keepdims=False)

        allowed_bw = None if allowed_btw is None else here(allowed_btw)
        token_b = draw(here(logits_btv), so_far.seen, position_b + place, rows, allowed_bw)
        is_right_b = goes_b & (place < num_proposed_b) & (token_b == here(proposed_bt))
        so_far = Accepted(
            num_b=so_far.num_b + is_right_b,
            token_bt=so_far.token_bt.at[:, place].set(jnp.where(goes_b, token_b, 0)),
            # What is drawn for a row that has stopped is not counted.
            seen=so_far.seen.add(jnp.where(goes_b, token_b, num_ids)),
        )
        return so_far, is_right_b, place + 1

    nothing = Accepted(
        num_b=jnp.zeros((b,), jnp.int32),
        token_bt=jnp.zeros((b, num_places), jnp.int32),
        seen=seen,
    )
    accepted, _, _ = lax.while_loop(goes_on, step, (nothing, jnp.ones((b,), bool), jnp.int32(0)))
    return accepted
