"""Where a sweep's jobs run: processes of this machine, Slurm, Ray."""
