"""Data: clips of speaking people as records, a drawn world with known truth, and the batches that training reads."""
