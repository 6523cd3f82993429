"""What more than one room needs of text."""
