"""How to run a model, apart from what it is: products, kernels, sharding, precision.

Model code takes a `Runtime` as an argument, so that one model runs on a laptop, in a sharded
training step and in the generation engine with no branch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.nn.experts import Assigned, dot_experts
from llmasos_jax.nn.fences import fence_gradient
from llmasos_jax.nn.quantized import Rounding, dot_rounded
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.mesh import ways
from llmasos_jax.parallel.schedule import Schedule

Product = Callable[..., jax.Array]


def dot(spec: str, x: jax.Array, w: jax.Array, *, out_dtype: Any) -> jax.Array:
    """The product of activations and a weight: an einsum in `w`'s dtype.

    Devices sum in float32 inside and round once, to `out_dtype`. A float32 result cast afterwards
    would be the same on one device, but partial sums would cross a pod's links in float32.
    """
    return jnp.einsum(spec, x.astype(w.dtype), w, preferred_element_type=out_dtype)


def dot_narrow(
    spec: str, x: jax.Array, w: jax.Array, *, out_dtype: Any, dtype: Any = None
) -> jax.Array:
    """`dot` in `dtype` whose gradients are products in it too, each of them summed in float32.

    The product of CPUs. For bfloat16 between float32 activations: there the gradient that comes
    back is float32, and a product of mixed dtypes runs at float32's speed, half of bfloat16's.
    What reaches the activations' gradient is not rounded, nor is the weights' where they are
    float32. The backward pass rounds `x` and `w` again: kept as they are, they are kept once for
    all products that read them. For float32: see `_product_of_rows`. No forward-mode derivatives.
    `dtype` None is `w`'s.

    Example:
      >>> x, w = jnp.ones((1, 2, 3)), jnp.ones((3, 4), jnp.bfloat16)
      >>> loss = lambda x: dot_narrow("btd,df->btf", x, w, out_dtype=jnp.float32).sum()
      >>> print(jax.grad(loss)(x)[0, 0])
      [4. 4. 4.]
    """
    return _dot_narrow(
        spec, jnp.dtype(out_dtype), jnp.dtype(w.dtype if dtype is None else dtype), x, w
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dot_narrow(spec: str, out_dtype: Any, dtype: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    return dot(spec, x, w.astype(dtype), out_dtype=out_dtype)


def _dot_narrow_fwd(
    spec: str, out_dtype: Any, dtype: Any, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, Any]:
    return dot(spec, x, w.astype(dtype), out_dtype=out_dtype), (x, w)


def _dot_narrow_bwd(
    spec: str, out_dtype: Any, dtype: Any, kept: Any, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del out_dtype
    x, w = kept
    inputs, _, output = spec.partition("->")
    x_axes, _, w_axes = inputs.partition(",")
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    grad = grad.astype(dtype)
    grad_x = product(f"{output},{w_axes}->{x_axes}", grad, w.astype(dtype))
    rows = x_axes[: sum(axis not in w_axes for axis in x_axes)]
    x_out = (x_axes.removeprefix(rows), output.removeprefix(rows))
    if dtype == jnp.float32 and w_axes in ("".join(x_out), "".join(x_out[::-1])):
        grad_w = _product_of_rows(x, grad, len(rows), is_swapped=w_axes != "".join(x_out))
        grad_w = grad_w.reshape(w.shape)
    else:
        grad_w = product(f"{x_axes},{output}->{w_axes}", x.astype(dtype), grad)
    return grad_x.astype(x.dtype), grad_w.astype(w.dtype)


def _product_of_rows(x: jax.Array, y: jax.Array, num_lead: int, *, is_swapped: bool) -> jax.Array:
    """The sum over rows of x y^T, or y x^T: of `x` [..., I] and `y` [..., O], [I, O] or [O, I].

    XLA for CPU multiplies two such float32 matrices as they lie. With more leading axes than one it
    first writes one factor anew with its rows last, and computes whatever made it, column by
    column, inside of that copy: a fifth of a traced step of the 135M shape.
    """
    count = math.prod(x.shape[:num_lead])
    rows = lambda array: array.reshape(count, math.prod(array.shape[num_lead:]))
    a, b = (rows(y), rows(x)) if is_swapped else (rows(x), rows(y))
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


_dot_narrow.defvjp(_dot_narrow_fwd, _dot_narrow_bwd)


def dot_out_first(spec: str, x: jax.Array, w: jax.Array, *, out_dtype: Any) -> jax.Array:
    """`dot` for weights stored with output axes first, as `models.definition.out_first` lays them.

    XLA on CPU streams such a matrix row by row, at memory speed, when there is one token.
    """
    inputs, _, output = spec.partition("->")
    x_axes, _, w_axes = inputs.partition(",")
    num_in = sum(axis not in output for axis in w_axes)
    lead, inner = x.shape[: x.ndim - num_in], math.prod(x.shape[x.ndim - num_in :])
    rows = x.astype(w.dtype).reshape(-1, inner)
    matrix = w.reshape(-1, inner)
    y = lax.dot_general(rows, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return y.astype(out_dtype).reshape(*lead, *w.shape[: w.ndim - num_in])


@dataclass(frozen=True)
class Runtime:
    """How to run a model.

    Attributes:
      product: every product of activations and weights goes through this one function: precision,
        quantisation and adapters plug in here.
      block_product: takes the place of `product` for the products inside blocks; None for the same.
      coded_product: takes the place of `product` where a weight is kept in codes with scales; None
        widens the codes and multiplies as ever.
      expert_product: its sibling, for rows that each have their own expert's weights.
      expert_capacity: training only: an expert takes so many times its even share of a row's
        tokens, and drops later ones; None never drops.
      label_smoothing: training only: share of a target's probability that is spread over all; None
        for none. A scalar of a trace where runs that differ in it share a program.
      dtype: of the weights in products.
      act_dtype: of activations between products. Norms, softmax and loss are float32 in any case.
      remat: what the backward pass computes again: "none", "dots", "full", or "tags": all but what
        the next two name.
      remat_save, remat_offload: tags of `tag` whose arrays are kept, on the device or in the
        host's memory.
      manual: sharding inside the training step; None leaves every array to the compiler.
      platform: of the devices that will run it ("cpu", "tpu", "gpu"); chooses kernels. "any" is one
        program for all of them, whose batch and length may be symbols.
      max_unrolled: a loop over at most so many periods of layers is written out. A CPU then copies
        no stacked weights, gradients and saved activations (loss and gradient of BERT-base: 4.8 s
        of the processor, not 5.5); compiling takes longer with each layer.
      mesh: the devices, where arrays live on several and `manual` is None: kernels that the
        compiler cannot split need to know.
      kernels: which kernel computes attention, in which blocks.
      schedule: of the stages that scanned layers run in, inside the manual region; None runs them
        all on each device.
    """

    product: Product = dot
    block_product: Product | None = None
    coded_product: Product | None = None
    expert_product: Product = dot_experts
    expert_capacity: float | None = None
    label_smoothing: Any = None
    dtype: Any = jnp.float32
    act_dtype: Any = jnp.float32
    remat: str = "none"
    remat_save: tuple[str, ...] = ()
    remat_offload: tuple[str, ...] = ()
    manual: Manual | None = None
    platform: str = "cpu"
    max_unrolled: int = 1
    mesh: Mesh | None = None
    kernels: KernelsConfig = KernelsConfig()
    schedule: Schedule | None = None

    def dot(
        self, spec: str, x: jax.Array, w: jax.Array, *, dtype: Any = None, out_dtype: Any = None
    ) -> jax.Array:
        """The product of activations `x` and a weight `w`.

        In `self.dtype`, and rounded to `act_dtype`, unless told otherwise. A product that is told
        (a router's, an output layer's) has its reasons, so it is never `block_product`.
        """
        is_plain = dtype is None and out_dtype is None
        x = fence_gradient(x) if self.fences_products else x
        product = self.block_product if is_plain and self.block_product else self.product
        dtype = self.dtype if dtype is None else dtype
        out_dtype = self.act_dtype if out_dtype is None else out_dtype
        if product is dot_narrow:
            return dot_narrow(spec, x, w, out_dtype=out_dtype, dtype=dtype)
        return product(spec, x, w.astype(dtype), out_dtype=out_dtype)

    @property
    def fences_products(self) -> bool:
        """Whether the gradient of what goes into a product is computed apart: see `nn.fences`.

        With devices along `tensor` each of them has a part of it, and the parts of q, k and v are
        added before they go over the links: what goes into a sub-layer is fenced then.
        """
        has_parts = self.manual is not None and ways(self.manual.mesh, "tensor") > 1
        return self.platform == "tpu" and not has_parts

    def fence(self, x: jax.Array) -> jax.Array:
        """What goes into the products of a sub-layer."""
        return fence_gradient(x) if self.platform == "tpu" and not self.fences_products else x

    def dot_experts(self, x: jax.Array, w: jax.Array, assigned: Assigned) -> jax.Array:
        """Rows [R, I] times their experts' weights [E, I, O], [R, O]; see `nn.experts`."""
        return self.expert_product(
            x,
            w.astype(self.dtype),
            assigned,
            out_dtype=self.act_dtype,
            platform=self.platform,
        )

    def place(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Constrains where an activation lives; `axes` are logical names."""
        return x if self.manual is None else self.manual.place(x, *axes)

    def first_token(self, num_tokens: int) -> jax.Array | int:
        """The place in the sequence of the first of the tokens that are here."""
        return 0 if self.manual is None else self.manual.first_token(num_tokens)

    def whole_tokens(self, x: jax.Array) -> jax.Array:
        """[B, T, ...] of whole sequences, from the tokens that are here."""
        return x if self.manual is None else self.manual.whole_tokens(x)

    def own_tokens(self, x: jax.Array) -> jax.Array:
        """Of [B, T, ...] of whole sequences, the tokens that are here."""
        return x if self.manual is None else self.manual.own_tokens(x)

    def tag(self, x: jax.Array, name: str) -> jax.Array:
        """`x`, known by a name of `config.schema.REMAT_TAGS` to what `remat="tags"` keeps."""
        return checkpoint_name(x, name) if self.remat == "tags" else x

    def gather(self, w: jax.Array, axes: tuple[str | None, ...], is_product: bool) -> jax.Array:
        """The whole weight from its shard, in `dtype` if products want it so."""
        if self.manual is None:
            return w
        # `dot_narrow` casts, and wants to itself; but gradients of what is widened here are summed
        # before they are rounded to the type of the weights.
        is_cast = is_product and (self.product is not dot_narrow or self.dtype == jnp.float32)
        return self.manual.gather(w, axes, self.dtype if is_cast else w.dtype)


def training_runtime(
    precision: PrecisionConfig,
    platform: str,
    *,
    remat: str = "none",
    remat_save: tuple[str, ...] = (),
    remat_offload: tuple[str, ...] = (),
    manual: Manual | None = None,
    kernels: KernelsConfig = KernelsConfig(),
) -> Runtime:
    """The Runtime of a training step: the one place where precision is chosen by kind of device.

    With `precision.dtype` "bfloat16" products are bfloat16; on a CPU, where bfloat16 pays inside
    products only, activations between them stay float32; "float16" likewise. With
    `precision.quantize` the products of attention and MLPs are of eight bits, in the devices' own
    arithmetic where it has them (TPU, GPU), else the same codes in bfloat16 (CPU). Those of chosen
    experts, routers, pooled heads and the output layer are not.
    """
    dtype = jnp.dtype(precision.dtype)
    act_dtype = jnp.dtype(jnp.float32) if platform == "cpu" else dtype
    rounding = None
    if precision.quantize is not None:
        rounding = Rounding(precision.quantize, is_native=platform != "cpu")
    return Runtime(
        product=dot_narrow if platform == "cpu" else dot,
        block_product=rounding and partial(dot_rounded, rounding),
        dtype=dtype,
        act_dtype=act_dtype,
        remat=remat,
        remat_save=remat_save,
        remat_offload=remat_offload,
        manual=manual,
        platform=platform,
        max_unrolled=16 if platform == "cpu" else 1,
        kernels=kernels,
    )
