"""Results beside each other: a table, tests, plots, and where two models answer differently."""
