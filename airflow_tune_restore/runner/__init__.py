"""The program that runs one attempt with Ray. See `__main__` for its command line."""
