"""Training: the emotion embedder, the adaptation of the diffusion model, and the networks that these stand on."""
