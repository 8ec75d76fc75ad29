"""Records -> latents and features, through the frozen networks."""
