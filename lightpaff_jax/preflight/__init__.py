"""Compiles the training step for TPU slices that need not be attached."""
