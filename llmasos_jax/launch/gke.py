"""A JobSet for TPU slices on Google Kubernetes Engine."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from llmasos_jax.errors import ConfigError
from llmasos_jax.launch.machines import Slice
from llmasos_jax.launch.options import SAVE_S, LaunchOptions
from llmasos_jax.launch.yamltext import to_yaml
from llmasos_jax.parallel.environment import DEFAULT_PORT

_DATA, _CONFIG, _CONTAINER = "/data", "/etc/llmasos", "train"
_LOST = {
    False: "so does a machine that fails, since\n# the others end with 3 (--restart-lost: not).",
    True: "a lost machine (3 on the others)\n# does not, nor does a loss that is not finite.",
}


def jobset(name: str, config: str, made: Slice, slices: int, options: LaunchOptions) -> str:
    """The YAML file: the config as a ConfigMap, and a JobSet with one Job for each slice.

    Args:
      name: of both.
      config: text of the resolved config.json.
      made: the machines of one slice.
      slices: of the run.
      options: image, bucket, workdir and so on.

    Raises:
      ConfigError: the training folder is not in the bucket.
    """
    folder = PurePosixPath(str(options.workdir))
    if not folder.is_relative_to(_DATA) or folder == PurePosixPath(_DATA):
        raise ConfigError(
            f"--workdir={options.workdir} has to be a folder in {_DATA}, where --bucket is mounted "
            f"({_DATA}/{name})"
        )
    metadata = {"name": name, "namespace": options.namespace}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"config.json": config},
    }
    head = (
        f"# llmasos train on {slices} x {made.accelerator_type} ({made.topology}): "
        f"{made.hosts} hosts of {made.chips_per_host} chips each.\n"
        f"#   kubectl apply -f jobset.yaml\n"
        f"#   kubectl logs -f job/{name}-slice-0 -n {options.namespace}\n"
        f"#   kubectl delete -f jobset.yaml      (before it is applied once more)\n"
        f"# The cluster has the JobSet controller and the add-on GcsFuseCsiDriver, the pods'\n"
        f"# service account may write to gs://{options.bucket}, and each slice is a node pool.\n"
        f"# Status 75 (preempted and saved) starts the run again, {options.max_restarts} times at "
        f"most; it goes on\n# from its newest checkpoint. Status "
        f"{' or '.join(map(str, options.fatal_statuses))} ends it: {_LOST[options.restart_lost]}\n"
    )
    return f"{head}{to_yaml(config_map)}---\n{to_yaml(_jobset(metadata, made, slices, options))}"


def _jobset(
    metadata: dict[str, Any], made: Slice, slices: int, options: LaunchOptions
) -> dict[str, Any]:
    metadata = dict(metadata)
    if options.queue is not None:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    if made.hosts > 1:
        # Each slice is a node pool of its own; no two of the run's Jobs may share one.
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    # A Job whose pods ended with a fatal status fails with this reason; any other way it is made
    # anew, with all the others, so that the processes meet again.
    stop = {
        "name": "fatal",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    job = {
        "name": "slice",
        "replicas": slices,
        "template": {"spec": _job(metadata["name"], made, options)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": options.max_restarts, "rules": [stop]},
            "replicatedJobs": [job],
        },
    }


def _job(name: str, made: Slice, options: LaunchOptions) -> dict[str, Any]:
    on_exit = {
        "containerName": _CONTAINER,
        "operator": "In",
        "values": options.fatal_statuses,
    }
    return {
        "parallelism": made.hosts,
        "completions": made.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": on_exit}]},
        "template": {
            "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
            "spec": _pod(name, made, options),
        },
    }


def _pod(name: str, made: Slice, options: LaunchOptions) -> dict[str, Any]:
    train = ["llmasos", "train", f"--config={_CONFIG}/config.json", f"--workdir={options.workdir}"]
    # The shell gives way to the run, so that SIGTERM reaches it.
    setup = ["bash", "-c", f'{options.setup} && exec "$0" "$@"'] if options.setup else []
    account = {"serviceAccountName": options.service_account} if options.service_account else {}
    # 8471 and 8080 are libtpu's, within a slice and between slices.
    ports = [8471, 8080, DEFAULT_PORT, DEFAULT_PORT + 1]
    container = {
        "name": _CONTAINER,
        "image": options.image,
        "command": [*setup, *train],
        "ports": [{"containerPort": port} for port in ports],
        "resources": {"limits": {"google.com/tpu": made.chips_per_host}},
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG, "readOnly": True},
            {"name": "data", "mountPath": _DATA},
        ],
    }
    bucket = {"bucketName": options.bucket, "mountOptions": "implicit-dirs"}
    return {
        **account,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.save_s or SAVE_S["gke"],
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": made.machine.gke,
            "cloud.google.com/gke-tpu-topology": made.topology,
        },
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": name}},
            {
                "name": "data",
                "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket},
            },
        ],
    }
