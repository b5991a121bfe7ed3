"""A package, so that its fixtures of this scope end with its last test."""
