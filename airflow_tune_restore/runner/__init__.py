"""Runs one trial where Ray runs: the only room that imports ray. See `__main__` for the command line."""
