"""PyTorch checkpoints <-> Flax parameters."""
