"""The rooms of the house: each a pipeline, none imports another."""
