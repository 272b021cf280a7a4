"""Attention over pages on TPU, by JAX's own kernel: it fetches each row's pages while it computes.

Ragged paged attention (jax.experimental.pallas.ops.tpu.ragged_paged_attention): rows of any length,
prompts and single tokens alike, pages straight from HBM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.nn.paged import Places
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.mesh import ways

LANES = 128  # numbers of a TPU's vector
# Tokens that are fetched and scored at a time. The kernel's own table of sizes asks the process's
# first device, which is no TPU where a TPU program is compiled ahead of time.
KEYS, QUERIES = 1024, 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RaggedLayer:
    """Keys and values of one layer, as the kernel reads them.

    Attributes:
      kv_pcnh: [P, C, 2 K, H]: of each key head its key, then its value.
    """

    kv_pcnh: jax.Array

    @classmethod
    def empty(
        cls, num_pages: int, page_size: int, heads: int, widths: tuple[int, int], dtype: Any
    ) -> RaggedLayer:
        """Pages of zeros; `widths` are those of a key and of a value, the same."""
        return cls(jnp.zeros((num_pages, page_size, 2 * heads, widths[0]), dtype))

    def write(self, k_btkh: jax.Array, v_btkh: jax.Array, places: Places) -> RaggedLayer:
        """With T more tokens of each row in its pages."""
        b, t, k, h = k_btkh.shape
        kv_btnh = jnp.stack([k_btkh, v_btkh], axis=3).reshape(b, t, 2 * k, h)
        page_bt, slot_bt = places.slots(t, self.kv_pcnh.shape[1])
        return RaggedLayer(
            self.kv_pcnh.at[page_bt, slot_bt].set(kv_btnh.astype(self.kv_pcnh.dtype))
        )

    def attend(
        self,
        q_btnh: jax.Array,
        places: Places,
        *,
        window: int | None,
        scale: float,
        soft_cap: float | None,
        slopes: np.ndarray | None,
        runtime: Runtime,
    ) -> jax.Array:
        """Causal attention over pages; arguments and result as in `PagedLayer.attend`."""
        from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernel

        if slopes is not None:
            raise ValueError("the kernel has no bias by distance; `ragged_fits` says so")
        b, t, n, h = q_btnh.shape
        lengths_b = places.first_b + t
        # Where each row's queries begin.
        begins = jnp.arange(b + 1, dtype=jnp.int32) * t

        sizes = {
            "num_kv_pages_per_block": min(
                max(KEYS // self.kv_pcnh.shape[1], 1), places.table_bm.shape[1]
            ),
            "num_queries_per_block": min(QUERIES, b * t),
        }

        def attend(q_qnh: jax.Array, kv_pcnh: jax.Array, *rows: jax.Array) -> jax.Array:
            return kernel.ragged_paged_attention(
                q_qnh,
                kv_pcnh,
                *rows,
                sm_scale=scale,
                sliding_window=window,
                soft_cap=soft_cap,
                **sizes,
            )

        if runtime.mesh is not None:
            # The compiler cannot cut a Pallas kernel: every axis is manual around it.
            whole = PartitionSpec()
            attend = jax.shard_map(
                attend,
                mesh=runtime.mesh,
                in_specs=(
                    PartitionSpec(None, "tensor"),
                    PartitionSpec(None, None, "tensor"),
                    *[whole] * 4,
                ),
                out_specs=PartitionSpec(None, "tensor"),
                axis_names=set(runtime.mesh.axis_names),
                check_vma=False,
            )
        rows = (lengths_b, places.table_bm, begins, jnp.array([b], jnp.int32))
        out_qnh = attend(
            q_btnh.reshape(b * t, n, h).astype(self.kv_pcnh.dtype), self.kv_pcnh, *rows
        )
        return out_qnh.reshape(b, t, n, h).astype(q_btnh.dtype)


def ragged_fits(cfg: ModelConfig, runtime: Runtime, dtype: Any) -> bool:
    """Whether the kernel can do it: on TPU, heads of whole vectors, no bias by distance.

    Args:
      cfg: the model.
      runtime: its platform and mesh.
      dtype: of keys and values.
    """
    split = 1 if runtime.mesh is None else ways(runtime.mesh, "tensor")
    if runtime.platform != "tpu" or cfg.position == "alibi" or cfg.kv_heads % split:
        return False
    if cfg.head_width != cfg.value_width or cfg.head_width % LANES:
        return False
    # A tile has 8 rows of 32 bits: as many heads have to fill tiles, or a part that divides one.
    packed, rest = divmod(2 * cfg.kv_heads // split, 4 // jnp.dtype(dtype).itemsize)
    return rest == 0 and (packed in (1, 2, 4, 8) or packed % 8 == 0)
