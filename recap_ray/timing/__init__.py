"""Timing: progress, stage times, forecasts. No torch."""
