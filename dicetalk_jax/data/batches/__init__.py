"""Features -> batches, with Grain."""
