"""Training: the emotion embedder, then the adaptation of the diffusion model, on one loop that never loses work."""
