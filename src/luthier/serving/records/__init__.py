"""What is kept: a row of each request, votes, right answers that come later."""
