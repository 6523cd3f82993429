"""Luthier: fine-tune language models on your own text and prove that they got better."""

__version__ = "0.1.0"
