"""From examples to a fine-tuned model."""
