"""A sweep's points as sessions of TensorBoard's HParams dashboard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.sweep.places import Places
from llmasos_jax.sweep.report.figures import setting_value
from llmasos_jax.sweep.report.outcomes import Outcome, Outcomes

FOLDER = "tensorboard_hparams"


def write_hparams(places: Places, outcomes: Outcomes) -> Path:
    """Writes event files anew: `tensorboard --logdir DIR/tensorboard_hparams` shows them.

    Beside the runs' own event files, not in them: TensorBoard reads a run's files in order, and
    reads no further in one that a running job still writes once there is a newer one.

    The seeds of a setting are one session group, over which the dashboard shows the mean. The
    metrics are the curves that `Outcome` keeps.

    Returns:
      The folder.
    """
    folder = places.root / FOLDER
    part = folder.with_name(f"{FOLDER}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    metrics = list(dict.fromkeys((outcomes.metric, "heldout_loss", "loss")))
    paths = list(dict.fromkeys(path for s in outcomes.settings for path in s.overrides))
    kinds = {path: _kind([outcomes.value(s, path) for s in outcomes.settings]) for path in paths}
    _write(part, [_experiment(outcomes, kinds, metrics)])
    for setting in outcomes.settings:
        values = {
            path: _as_kind(outcomes.value(setting, path), kind) for path, kind in kinds.items()
        }
        for outcome in setting.outcomes:
            _write_session(part / outcome.name, outcome, values, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def _kind(values: Sequence[Any]) -> type:
    """bool, float or str: what all values of a hyper-parameter can be shown as."""
    if all(isinstance(value, bool) for value in values):
        return bool
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return float if are_numbers else str


def _as_kind(value: Any, kind: type) -> bool | float | str:
    return setting_value(value) if kind is str else kind(value)


def _experiment(outcomes: Outcomes, kinds: dict[str, type], metrics: Sequence[str]) -> Any:
    api, plugin = _protos()
    types = {
        bool: api.DATA_TYPE_BOOL,
        float: api.DATA_TYPE_FLOAT64,
        str: api.DATA_TYPE_STRING,
    }
    experiment = api.Experiment(
        description=outcomes.question,
        time_created_secs=time.time(),
        hparam_infos=[api.HParamInfo(name=path, type=types[kind]) for path, kind in kinds.items()],
        metric_infos=[api.MetricInfo(name=api.MetricName(tag=name)) for name in metrics],
    )
    return plugin.HParamsPluginData(experiment=experiment)


def _write_session(
    folder: Path, outcome: Outcome, values: dict[str, bool | float | str], metrics: Sequence[str]
) -> None:
    api, plugin = _protos()
    start = plugin.SessionStartInfo(
        group_name=outcome.setting, start_time_secs=time.time() - (outcome.seconds or 0.0)
    )
    fields = {bool: "bool_value", float: "number_value", str: "string_value"}
    for path, value in values.items():
        setattr(start.hparams[path], fields[type(value)], value)
    data = [plugin.HParamsPluginData(session_start_info=start)]
    is_bad = outcome.status in ("diverged", "failed")
    if outcome.status != "waiting":
        status = api.STATUS_FAILURE if is_bad else api.STATUS_SUCCESS
        end = plugin.SessionEndInfo(status=status, end_time_secs=time.time())
        data.append(plugin.HParamsPluginData(session_end_info=end))
    curves = {name: outcome.curves.get(name, ()) for name in metrics}
    for name, curve in curves.items():
        if not curve and name in outcome.values:
            curves[name] = ((outcome.step, outcome.values[name]),)
    _write(folder, data, curves)


def _protos() -> tuple[Any, Any]:
    """The plugin's messages. pyright sees no classes in generated protocol buffers."""
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    return api_pb2, plugin_data_pb2


def _write(folder: Path, data: Sequence[Any], curves: dict[str, Any] | None = None) -> None:
    """One event file: what the plugin is told, then scalars."""
    # Here, not above: importing it takes a quarter of a second.
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
    from tensorboard.plugins.hparams import metadata
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    tags = {
        "experiment": metadata.EXPERIMENT_TAG,
        "session_start_info": metadata.SESSION_START_INFO_TAG,
        "session_end_info": metadata.SESSION_END_INFO_TAG,
    }
    writer, now_s = EventFileWriter(str(folder)), time.time()
    for told in data:
        value = Summary.Value(
            tag=tags[told.WhichOneof("data")],
            metadata=metadata.create_summary_metadata(told),
            tensor=metadata.NULL_TENSOR,
        )
        writer.add_event(Event(wall_time=now_s, summary=Summary(value=[value])))
    for name, curve in (curves or {}).items():
        for step, number in curve:
            value = Summary.Value(tag=name, simple_value=number)
            writer.add_event(Event(step=step, wall_time=now_s, summary=Summary(value=[value])))
    writer.close()
