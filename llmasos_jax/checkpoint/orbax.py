"""Saves and restores a training run. The only file that imports Orbax.

One step folder holds the state, the data position, the resolved config, a list of the leaves, and
the hashes of all that. It is written in the background under another name and renamed when whole,
so a run killed at any moment leaves whole checkpoints only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from llmasos_jax.checkpoint import manifest, steps
from llmasos_jax.checkpoint.hashes import HashesHandler, SaveHashes
from llmasos_jax.checkpoint.leaves import check_same, describe, flatten, is_stacked, nest
from llmasos_jax.checkpoint.manifest import Gather
from llmasos_jax.checkpoint.stored import read_leaves
from llmasos_jax.checkpoint.sums import added, own_pieces, sums_of_pieces
from llmasos_jax.errors import CheckpointError, DamagedCheckpointError, SaveFailedError


@dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore` gives.

    Attributes:
      step: the step that was restored.
      state: the same pytree as the target, with arrays.
      data_state: the data position that was saved with it.
      config: the resolved config that was saved with it.
    """

    step: int
    state: Any
    data_state: Any
    config: dict[str, Any]


class Checkpointer:
    """Keeps the newest checkpoints of one run.

    Args:
      folder: the `checkpoints` folder of the run; made if absent.
      every_steps: how often `is_due` says yes; None never.
      keep: newest checkpoints kept.
      gather: what the processes of the run agree through; None for one process.

    Raises:
      CheckpointError: the folder cannot be made or written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     keeper = Checkpointer(folder, every_steps=10)
      ...     keeper.save(10, {"w": jnp.arange(3.0)}, {"next": 10}, {"name": "tiny"})
      ...     target = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
      ...     restored = keeper.restore(target)
      ...     keeper.close()
      >>> restored.step, restored.state["w"].tolist(), restored.data_state
      (10, [0.0, 1.0, 2.0], {'next': 10})
    """

    def __init__(
        self,
        folder: str | Path,
        every_steps: int | None = None,
        keep: int = 3,
        gather: Gather | None = None,
    ) -> None:
        _quieten()
        self._gather = gather or (lambda value: [value])
        # Without a way to agree each process looks at all files, which is the same verdict.
        self._share = (jax.process_index(), jax.process_count()) if gather else (0, 1)
        hashes = HashesHandler()
        # Orbax wants an absolute path.
        self.folder = Path(os.path.abspath(folder))
        self.every_steps = every_steps
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            # Called when all is on disk, before the folder gets its name.
            async_options=ocp.options.AsyncOptions(post_finalization_callback=hashes.write),
        )
        # Weights hardly compress, and compressing would take CPU time from the training step.
        state_handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        handlers = {steps.STATE: state_handler, steps.MANIFEST: hashes} | {
            item: ocp.JsonCheckpointHandler() for item in (steps.DATA, steps.CONFIG, steps.LEAVES)
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._set_aside_broken()
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers
            )
        except OSError as error:
            raise CheckpointError(
                f'cannot use "{self.folder}" for checkpoints ({error}); choose another --workdir'
            ) from error

    def is_due(self, step: int) -> bool:
        """Whether `step` is one that `every_steps` asks to save."""
        return self.every_steps is not None and step > 0 and step % self.every_steps == 0

    def save(self, step: int, state: Any, data_state: Any, config_dict: Mapping[str, Any]) -> None:
        """Starts to save; returns when the arrays may be donated, before they are on disk.

        A step that is already there stays as it is.

        Args:
          step: number of optimizer steps done.
          state: a pytree of arrays; typed PRNG keys are kept as their data.
          data_state: the data position, any JSON value.
          config_dict: the resolved config, a JSON object.

        Raises:
          SaveFailedError: this save, or the one before it that ran in the background, failed.
        """
        if step in self._manager.all_steps():
            return
        if not self.folder.is_dir():
            # Orbax would make it again, and the run go on in a folder without its past.
            raise SaveFailedError(
                f'cannot write a checkpoint to "{self.folder}": the folder is gone; put it back '
                "with what was in it, and the same command goes on from the newest"
            )
        named = flatten(state)
        described = _described(named)
        leaves = {name: [list(leaf.shape), leaf.dtype] for name, leaf in described.items()}
        arrays = {name: _stored(leaf) for name, leaf in named.items() if 0 not in np.shape(leaf)}
        # One layer of a stacked leaf is one chunk, so that conversion can read one at a time.
        save_args = {
            name: ocp.SaveArgs(shard_axes=(0,) if is_stacked(name) and array.ndim else ())
            for name, array in arrays.items()
        }
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        steps.STATE: ocp.args.PyTreeSave(nest(arrays), save_args=nest(save_args)),
                        steps.DATA: ocp.args.JsonSave(data_state),
                        steps.CONFIG: ocp.args.JsonSave(dict(config_dict)),
                        steps.LEAVES: ocp.args.JsonSave(leaves),
                        steps.MANIFEST: SaveHashes(step, arrays, described),
                    }
                ),
            )
        except Exception as error:
            raise self._failed(error) from error

    def latest_step(self) -> int | None:
        """The newest step that is whole on disk, or None."""
        found = steps.all_steps(self.folder)
        return found[-1] if found else None

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
        """Restores a step into arrays laid out as the target says.

        The hashes of its files are compared before, the sums of its leaves after they are read.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct`, each with the sharding it is to have
            (None: the first device). The mesh need not be the one that wrote the checkpoint.
          step: which one; None takes the newest that is not damaged, says which ones are, and puts
            those aside.

        Raises:
          CheckpointError: there is none, it is damaged, or its leaves are not the target's; then
            the message lists every leaf that differs and nothing has been read.
        """
        self.wait()
        wanted = flatten(abstract_state)
        if step is not None:
            return self._restore(steps.find_step(self.folder, step), wanted, abstract_state)
        steps.find_step(self.folder)
        bad: list[DamagedCheckpointError] = []
        for number in reversed(steps.all_steps(self.folder)):
            folder = steps.find_step(self.folder, number)
            try:
                found = self._restore(folder, wanted, abstract_state)
            except DamagedCheckpointError as error:
                bad.append(error)
                continue
            if bad:
                self._set_aside(bad, f"; going on from step {number}")
                # Now newer than the newest: the run comes there again, and saves there.
                self._set_aside_broken()
                self._manager.reload()
            return found
        if len(bad) == 1:
            raise bad[0]
        raise CheckpointError(steps.all_damaged(self.folder, bad))

    def _restore(self, folder: Path, wanted: Mapping[str, Any], abstract: Any) -> Restored:
        written = self._checked(folder)
        check_same(read_leaves(folder), _described(wanted), str(folder))
        data_state, config = (
            steps.read_json(folder, steps.DATA),
            steps.read_json(folder, steps.CONFIG),
        )
        arguments = ocp.args.Composite(**{steps.STATE: _arguments(wanted)})
        try:
            found = self._manager.restore(int(folder.name), args=arguments)
        except Exception as error:
            damage = steps.damaged(folder, error)
            if jax.process_count() > 1:
                # The others may have read it: this one cannot take another step on its own.
                raise CheckpointError(str(damage)) from error
            raise damage from error
        arrays = flatten(found[steps.STATE])
        if written is not None:
            _check_read(folder, written, arrays, self._gather)
        state = _as_target(arrays, wanted, abstract)
        return Restored(int(folder.name), state, data_state, config)

    def _checked(self, folder: Path) -> manifest.Manifest | None:
        """The manifest of a step folder whose files are those that it lists."""
        written = manifest.require_sound(folder, self._gather, self._share)
        if written is None and self._is_first:
            note = "was written before there were hashes, so it is not checked for damage"
            print(f"note: checkpoint {folder} {note}", file=sys.stderr)
        return written

    def _set_aside_broken(self) -> None:
        """Puts aside folders after the newest step that lack what every step has.

        One that is older is a step whose removal was cut short, and is removed as the others are.
        """
        newest = self.latest_step() or -1
        found = [f for f in steps.broken_folders(self.folder) if int(f.name) > newest]
        self._set_aside([steps.damaged(f, "it lacks files that every step has") for f in found], "")

    def _set_aside(self, bad: list[DamagedCheckpointError], then: str) -> None:
        """Renames damaged step folders, and says so; all processes call it."""
        if self._is_first:
            for error in bad:
                place = steps.set_aside(Path(error.folder))
                print(
                    f'warning: checkpoint "{error.folder}" is damaged ({error.what}); it is now '
                    f"called {place.name}{then}",
                    file=sys.stderr,
                )
        self._gather(None)

    @property
    def _is_first(self) -> bool:
        return jax.process_index() == 0

    def wait(self) -> None:
        """Waits until everything that was saved is on disk.

        Raises:
          SaveFailedError: a save failed (the disk is full, the folder is gone).
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits, and lets go of the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _failed(self, error: BaseException) -> SaveFailedError:
        return SaveFailedError(
            f'cannot write a checkpoint to "{self.folder}" ({_reason(error)}); check the free '
            "space and the permissions. Checkpoints written before are whole, and the same command "
            "goes on from the newest."
        )


def _reason(error: BaseException) -> str:
    """What the system said; the libraries between wrap it in pages of their own."""
    text = str(error).strip()
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
    for number in known:
        if os.strerror(number) in text:
            return os.strerror(number)
    # TensorStore's name for a full disk, whose own words it cuts off.
    if text.startswith("RESOURCE_EXHAUSTED"):
        return os.strerror(errno.ENOSPC)
    return (text or type(error).__name__).splitlines()[0][:200]


def restore_part(folder: Path, name: str, abstract: Any) -> Any:
    """Reads one part of the state in a step folder of another run, and changes nothing there.

    Args:
      folder: from `steps.find_step`.
      name: the part's path in the state ("params", "opt_state/master").
      abstract: a pytree of `jax.ShapeDtypeStruct`, each with the sharding it is to have.

    Returns:
      The same pytree with arrays.

    Raises:
      CheckpointError: it is damaged, or its leaves are not the target's; then the message lists
        every leaf that differs and nothing has been read.
    """
    _quieten()
    target = abstract
    for key in reversed(name.split("/")):
        target = {key: target}
    wanted = flatten(target)
    found = {n: leaf for n, leaf in read_leaves(folder).items() if n.startswith(f"{name}/")}
    check_same(found, _described(wanted), str(folder))
    manifest.require_sound(folder)
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    try:
        with contextlib.closing(reader):
            stored = reader.restore(
                folder / steps.STATE, args=_arguments(wanted, partial_restore=True)
            )
    except Exception as error:
        raise steps.damaged(folder, error) from error
    return _as_target(flatten(stored), wanted, abstract)


def _check_read(
    folder: Path, written: manifest.Manifest, arrays: Mapping[str, Any], gather: Gather
) -> None:
    """Compares the sums of arrays that were read with those of the arrays that were saved."""
    found = sums_of_pieces(own_pieces(arrays))
    sums = added(
        [
            {name: int(value) for name, value in part.items()}
            # As text: a message between processes is JSON, whose numbers are floats elsewhere.
            for part in gather({name: str(value) for name, value in found.items()})
        ]
    )
    lines = manifest.check_sums(sums, written, list(arrays))
    if lines:
        raise steps.damaged(folder, manifest.first_of(lines))


def _arguments(wanted: Mapping[str, Any], *, partial_restore: bool = False) -> Any:
    """What Orbax is told to read: every leaf that has numbers, where it is to live."""
    targets = {name: _stored_target(leaf) for name, leaf in wanted.items() if 0 not in leaf.shape}
    restore_args = {
        name: ocp.ArrayRestoreArgs(sharding=t.sharding, global_shape=t.shape, dtype=t.dtype)
        for name, t in targets.items()
    }
    return ocp.args.PyTreeRestore(
        item=nest(targets), restore_args=nest(restore_args), partial_restore=partial_restore
    )


def _as_target(arrays: Mapping[str, Any], wanted: Mapping[str, Any], abstract: Any) -> Any:
    """The pytree that the caller asked for, from what Orbax read."""
    values = [_as_wanted(arrays.get(name), leaf) for name, leaf in wanted.items()]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(abstract), values)


def _described(named: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: describe(leaf if hasattr(leaf, "dtype") else np.asarray(leaf))
        for name, leaf in named.items()
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> Any:
    """What goes to disk for a leaf: itself, or a key's uint32 data."""
    if not hasattr(leaf, "dtype"):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _stored_target(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The abstract array that is on disk for an abstract leaf."""
    sharding = leaf.sharding
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def _as_wanted(array: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The leaf that the caller asked for, from what was on disk (None: it has no numbers)."""
    if array is None:
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    if not _is_key(leaf):
        return array
    # A key dtype has no public way to its implementation, an empty key array has.
    impl = jax.random.key_impl(jnp.empty((0,), leaf.dtype))
    return jax.random.wrap_key_data(array, impl=impl)


class _NotOrbax(logging.Filter):
    """Drops Orbax's records: a page per save, and of an error what is raised in `wait` anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


def _quieten() -> None:
    logger = logging.getLogger("absl")
    if not any(isinstance(known, _NotOrbax) for known in logger.filters):
        logger.addFilter(_NotOrbax())
    _drop_stragglers()


def _drop_stragglers() -> None:
    """Keeps a failed save or restore to its one error.

    Orbax leaves its event loop at the first array that cannot be read or written; the work still
    under way then finds it closed, and Python prints each of those, whenever it comes to that.
    """
    before = sys.unraisablehook
    if getattr(before, "drops_stragglers", False):
        return

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    hook.drops_stragglers = True  # pyright: ignore[reportFunctionMemberAccess]
    sys.unraisablehook = hook
