"""What answers: the embedded engine, a process of its own for each version, servers by URL."""
