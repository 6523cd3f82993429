"""Package a model with all that belongs to it, check it, export it."""
