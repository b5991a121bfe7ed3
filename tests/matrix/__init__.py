"""The version matrix: which Rays, Pythons and Airflows this is run with. See docs/conformance.md."""
