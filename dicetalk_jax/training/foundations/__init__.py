"""Training of the networks that the release takes from others: VAE, Whisper, CLIP, RIFE."""
