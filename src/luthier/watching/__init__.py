"""`kedro monitor`: look at the traffic again and again, show it to Prometheus, and act on what was decided."""
