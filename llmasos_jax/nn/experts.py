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
# Elsewhere: the gradient of an expert's weights is read and written once for each block.
_LARGEST_BLOCK = 512


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Assigned:
    """Which token each row is of, and which expert each block is for.

    Attributes:
      token_r: int32 [R], the token of each row; the number of tokens where a row is empty.
      row_ak: int32 [A, k], the row of each token's choices; R for the choice of none.
      expert_g: int32 [G], the expert of each block of R / G rows, rising where G is below R; E for
        a block that is empty.
    """

    token_r: jax.Array
    row_ak: jax.Array
    expert_g: jax.Array

    def rows_of(self, x_ad: jax.Array) -> jax.Array:
        """Tokens [A, D] as rows [R, D]; empty rows are zero."""
        return x_ad.at[self.token_r].get(mode="fill", fill_value=0)

    def choices_of(self, y_rd: jax.Array) -> jax.Array:
        """Rows [R, D] as each token's choices, [A, k, D]; zero for the choice of none."""
        return y_rd.at[self.row_ak].get(mode="fill", fill_value=0)

    def times(self, y_rd: jax.Array, ratio_ed: jax.Array) -> jax.Array:
        """Rows [R, D] times their experts' numbers [E, D]; empty rows are zero."""
        ratio_gd = ratio_ed.at[self.expert_g].get(mode="fill", fill_value=0).astype(y_rd.dtype)
        blocks = y_rd.reshape(ratio_gd.shape[0], -1, y_rd.shape[-1])
        return (blocks * ratio_gd[:, None]).reshape(y_rd.shape)


def assign(
    chosen_ak: jax.Array, num_experts: int, platform: str, most: int | None = None
) -> Assigned:
    """Sorts the choices of tokens by expert: the one place where a kind of device has a say.

    Args:
      chosen_ak: int32 [A, k], the experts of each token; E is none.
      num_experts: E.
      platform: of the devices.
      most: as many of the choices at most are of an expert; None: all are.

    Example:
      >>> made = assign(jnp.array([[2, 0], [0, 1]]), 3, "gpu")
      >>> made.token_r.tolist(), made.expert_g.tolist(), made.row_ak.tolist()
      ([0, 1, 1, 0], [0, 0, 1, 2], [[3, 0], [1, 2]])
    """
    a, k = chosen_ak.shape
    choices = chosen_ak.reshape(-1)
    num = choices.size
    if platform == "cpu" and most is None and num <= num_experts:
        # Decoding: each choice is a block, so no expert is read that nobody chose.
        rows = jnp.arange(num, dtype=jnp.int32)
        return Assigned(rows // k, rows.reshape(a, k), choices)
    most = num if most is None else most
    if platform in ("cpu", "any"):
        block = _CPU_BLOCK
    else:
        block = _accelerator_block(most, num_experts)
    order = jnp.argsort(choices, stable=True)
    count_e = jnp.bincount(choices, length=num_experts).astype(jnp.int32)
    blocks_e = -(-count_e // block)
    ends_e = jnp.cumsum(blocks_e)
    # Row of the n-th choice in sorted order: where its expert's blocks begin, and its number there.
    shift_e = (ends_e - blocks_e) * block - (jnp.cumsum(count_e) - count_e)
    if platform == "any":  # the number of choices is a symbol
        num_blocks = most // block + num_experts
    else:
        num_blocks = most if block == 1 else most // block + min(num_experts, most)
    sorted_expert = choices[order]
    sorted_row = jnp.arange(num, dtype=jnp.int32) + shift_e[sorted_expert]
    sorted_row = jnp.where(sorted_expert < num_experts, sorted_row, num_blocks * block)
    row = jnp.zeros(num, jnp.int32).at[order].set(sorted_row)
    token = jnp.arange(num, dtype=jnp.int32) // k
    token_r = jnp.full(num_blocks * block, a, jnp.int32).at[row].set(token, mode="drop")
    expert_g = jnp.searchsorted(ends_e, jnp.arange(num_blocks, dtype=jnp.int32), side="right")
    return Assigned(token_r, row.reshape(a, k), expert_g.astype(jnp.int32))


def _accelerator_block(num_choices: int, num_experts: int) -> int:
    """Rows of a block, a power of two: as many as leave an eighth of all rows empty, on average."""
    return min(_LARGEST_BLOCK, 1 << max(0, (num_choices // (4 * num_experts)).bit_length() - 1))


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
    blocks = x.astype(w.dtype).reshape(assigned.expert_g.shape[0], -1, x.shape[-1])
    how = (out_first, platform not in ("cpu", "any"))
    y: jax.Array = _by_block(blocks, w, assigned.expert_g, jnp.dtype(out_dtype), how)
    return y.reshape(x.shape[0], -1)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _by_block(
    x_gri: jax.Array, w: jax.Array, expert_g: jax.Array, out_dtype: Any, how: tuple[bool, bool]
) -> jax.Array:
    return _product(x_gri, w, expert_g, out_dtype, *how)


def _product(
    x_gri: jax.Array,
    w: jax.Array,
    expert_g: jax.Array,
    out_dtype: Any,
    out_first: bool,
    is_ragged: bool,
) -> jax.Array:
    """Blocks [G, R, I] times their experts' weights, [G, R, O]."""
    if is_ragged:
        w_eio = jnp.swapaxes(w, 1, 2) if out_first else w
        num_blocks, rows, _ = x_gri.shape
        sizes_e = jnp.bincount(expert_g, length=w.shape[0]).astype(jnp.int32) * rows
        x_ri = x_gri.reshape(num_blocks * rows, -1)
        y_ro = lax.ragged_dot(x_ri, w_eio, sizes_e, preferred_element_type=out_dtype)
        # Rows of no expert: whatever was in that memory.
        is_used_g11 = (expert_g < w.shape[0])[:, None, None]
        return jnp.where(is_used_g11, y_ro.reshape(num_blocks, rows, -1), 0)

    # XLA for CPU has `ragged_dot` take all experts for all rows.
    def product(x_ri: jax.Array, expert: jax.Array) -> jax.Array:
        dims = (((1,), (1 if out_first else 0,)), ((), ()))
        return lax.dot_general(x_ri, w[expert], dims, preferred_element_type=out_dtype)

    def one(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_ri, expert = block
        width = w.shape[1 if out_first else 2]
        empty = lambda *_: jnp.zeros((x_ri.shape[0], width), out_dtype)
        return lax.cond(expert < w.shape[0], product, empty, x_ri, expert)

    return lax.map(one, (x_gri, expert_g))


def _by_block_forward(
    x_gri: jax.Array, w: jax.Array, expert_g: jax.Array, out_dtype: Any, how: tuple[bool, bool]
) -> tuple[jax.Array, Any]:
    return _product(x_gri, w, expert_g, out_dtype, *how), (x_gri, w, expert_g)


def _by_block_backward(
    out_dtype: Any, how: tuple[bool, bool], saved: Any, grad_gro: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    """The weights' gradient is added up in place, block by block.

    Autodiff would add a whole array per block on a CPU; for a TPU the compiler turns the gradient
    of `ragged_dot` into products of all rows with all experts, masked.
    """
    x_gri, w, expert_g = saved
    out_first, is_ragged = how
    grad_gro = grad_gro.astype(w.dtype)
    grad_x = _product(grad_gro, w, expert_g, x_gri.dtype, not out_first, is_ragged)
    left, right = (grad_gro, x_gri) if out_first else (x_gri, grad_gro)

    def one(total: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        a_ri, b_ro, expert = block

        def add(total: jax.Array) -> jax.Array:
            dims = (((0,), (0,)), ((), ()))
            grad_w = lax.dot_general(a_ri, b_ro, dims, preferred_element_type=jnp.float32)
            return total.at[expert].add(grad_w)

        return lax.cond(expert < w.shape[0], add, lambda total: total, total), None

    grad_w, _ = lax.scan(one, jnp.zeros(w.shape, jnp.float32), (left, right, expert_g))
    return grad_x, grad_w.astype(w.dtype), None


_by_block.defvjp(_by_block_forward, _by_block_backward)
