"""The networks that a small model stands on: VAE, Whisper, CLIP, RIFE, trained from nothing."""
