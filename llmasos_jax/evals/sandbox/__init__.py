"""Runs code that nobody has read, walled in, and counts which samples pass (pass@k)."""
