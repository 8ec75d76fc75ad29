"""Metrics, one per module: arrays in, numbers out."""
