"""The mathematics of sampling and training, as plain functions."""
