"""Inference: answers for a whole file."""
