"""Products of rows with their own expert's weights.

Rows are sorted by expert, and each expert's rows are filled up to whole blocks, so that one block
has one expert::

    chosen   token 0: 2, 0   token 1: 0, 1   token 2: 2, 0
    rows     0 1 2 . | 1 . . . | 0 2 . .        (tokens; blocks of 4 rows)
    experts  0       | 1       | 2
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Rows of a block on a CPU. Measured on two cores with 16 to 128 rows: 32 is within a tenth of the
# best for 8 experts of width 1024 and for 64 of width 256, forward and backward.
_CPU_BLOCK = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Assigned:
    """Which token each row is of, and which expert each block is for.

    Attributes:
      token_r: int32 [R], the token of each row; the number of tokens where a row is empty.
      row_ak: int32 [A, k], the row of each token's choices.
      expert_g: int32 [G], the expert of each block of R / G rows, rising where G is below R.
    """

    token_r: jax.Array
    row_ak: jax.Array
    expert_g: jax.Array

    def rows_of(self, x_ad: jax.Array) -> jax.Array:
        """Tokens [A, D] as rows [R, D]; empty rows are zero."""
        return x_ad.at[self.token_r].get(mode="fill", fill_value=0)

    def choices_of(self, y_rd: jax.Array) -> jax.Array:
        """Rows [R, D] as each token's choices, [A, k, D]."""
        return y_rd[self.row_ak]


def assign(chosen_ak: jax.Array, num_experts: int, platform: str) -> Assigned:
    """Sorts the choices of tokens by expert: the one place where a kind of device has a say.

    Args:
      chosen_ak: int32 [A, k], the experts of each token.
      num_experts: E.
      platform: of the devices.

    Example:
      >>> made = assign(jnp.array([[2, 0], [0, 1]]), 3, "gpu")
      >>> made.token_r.tolist(), made.expert_g.tolist(), made.row_ak.tolist()
      ([0, 1, 1, 0], [0, 0, 1, 2], [[3, 0], [1, 2]])
    """
    a, k = chosen_ak.shape
    choices = chosen_ak.reshape(-1)
    num = choices.size
    if platform == "cpu" and num <= num_experts:
        # Decoding: each choice is a block, so no expert is read that nobody chose.
        rows = jnp.arange(num, dtype=jnp.int32)
        return Assigned(rows // k, rows.reshape(a, k), choices)
    block = _CPU_BLOCK if platform == "cpu" else 1
    order = jnp.argsort(choices, stable=True)
    count_e = jnp.bincount(choices, length=num_experts).astype(jnp.int32)
    blocks_e = -(-count_e // block)
    ends_e = jnp.cumsum(blocks_e)
    # Row of the n-th choice in sorted order: where its expert's blocks begin, and its number there.
    shift_e = (ends_e - blocks_e) * block - (jnp.cumsum(count_e) - count_e)
    sorted_row = jnp.arange(num, dtype=jnp.int32) + shift_e[choices[order]]
    row = jnp.zeros(num, jnp.int32).at[order].set(sorted_row)
    num_blocks = num if block == 1 else num // block + min(num_experts, num)
    token = jnp.arange(num, dtype=jnp.int32) // k
    token_r = jnp.full(num_blocks * block, a, jnp.int32).at[row].set(token)
    expert_g = jnp.searchsorted(ends_e, jnp.arange(num_blocks, dtype=jnp.int32), side="right")
    expert_g = jnp.minimum(expert_g, num_experts - 1).astype(jnp.int32)
    return Assigned(token_r, row.reshape(a, k), expert_g)


def dot_experts(
    x: jax.Array,
    w: jax.Array,
    assigned: Assigned,
    *,
    out_dtype: Any,
    platform: str,
    out_first: bool = False,
) -> jax.Array:
    """Rows [R, I] times the weights [E, I, O] of their experts, [R, O].

    Args:
      x: rows as `assigned` sorts them.
      w: in the dtype of the product; [E, O, I] with `out_first`.
      assigned: whose rows they are.
      out_dtype: of the result.
      platform: of the devices.
      out_first: how `w` lies.
    """
    x = x.astype(w.dtype)
    if platform != "cpu":
        w = jnp.swapaxes(w, 1, 2) if out_first else w
        size = x.shape[0] // assigned.expert_g.shape[0]
        sizes_e = jnp.bincount(assigned.expert_g, length=w.shape[0]).astype(jnp.int32) * size
        return lax.ragged_dot(x, w, sizes_e, preferred_element_type=out_dtype)
    blocks = x.reshape(assigned.expert_g.shape[0], -1, x.shape[-1])
    y: jax.Array = _by_block(blocks, w, assigned.expert_g, jnp.dtype(out_dtype), out_first)
    return y.reshape(x.shape[0], -1)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _by_block(
    x_gri: jax.Array, w: jax.Array, expert_g: jax.Array, out_dtype: Any, out_first: bool
) -> jax.Array:
    """One block after the other: XLA for CPU has `ragged_dot` take all experts for all rows."""
    w_in = 1 if out_first else 0

    def one(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_ri, expert = block
        dims = (((1,), (w_in,)), ((), ()))
        return lax.dot_general(x_ri, w[expert], dims, preferred_element_type=out_dtype)

    return lax.map(one, (x_gri, expert_g))


def _by_block_forward(
    x_gri: jax.Array, w: jax.Array, expert_g: jax.Array, out_dtype: Any, out_first: bool
) -> tuple[jax.Array, Any]:
    return _by_block(x_gri, w, expert_g, out_dtype, out_first), (x_gri, w, expert_g)


def _by_block_backward(
    out_dtype: Any, out_first: bool, saved: Any, grad_gro: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    """The weights' gradient is added up in place; autodiff would add a whole array per block."""
    x_gri, w, expert_g = saved
    grad_gro = grad_gro.astype(w.dtype)

    def one(total: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x_ri, grad_ro, expert = block
        dims = (((1,), (0 if out_first else 1,)), ((), ()))
        grad_ri = lax.dot_general(grad_ro, w[expert], dims, preferred_element_type=jnp.float32)
        left, right = (grad_ro, x_ri) if out_first else (x_ri, grad_ro)
        grad_w = lax.dot_general(
            left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return total.at[expert].add(grad_w), grad_ri.astype(x_gri.dtype)

    zeros = jnp.zeros(w.shape, jnp.float32)
    grad_w, grad_x = lax.scan(one, zeros, (x_gri, grad_gro, expert_g))
    return grad_x, grad_w.astype(w.dtype), None


_by_block.defvjp(_by_block_forward, _by_block_backward)
