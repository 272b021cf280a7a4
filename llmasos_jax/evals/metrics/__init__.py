"""Metrics, each as docs/metrics.md defines it, with intervals and paired significance."""
