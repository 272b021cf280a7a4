"""StableHLO: a model's programs beside its weights, for whoever runs StableHLO."""
