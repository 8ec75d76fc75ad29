"""Evaluation: generate videos for known cases, measure them, and report."""
