"""From raw rows to tokenised examples."""
