"""Metrics, tasks and comparisons."""
