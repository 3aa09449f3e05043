"""How long work takes: progress, times of stages, forecasts. No torch."""
