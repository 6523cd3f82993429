"""The versions of the data: which there are, how two differ, one brought back, old ones removed, one person's rows erased."""
