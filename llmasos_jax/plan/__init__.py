"""What a run would do on a pod, from the TPU compiler, before it is paid for."""
