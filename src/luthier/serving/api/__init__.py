"""OpenAI's API, read and written."""
