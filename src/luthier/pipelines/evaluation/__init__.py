"""From models to an honest comparison."""
