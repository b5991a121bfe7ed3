"""The trainable of the golden experiments with its bugs gone: what a restore of them is given."""

from tests.golden import make_golden

GONE = {"fails": "finishes", "hangs": "finishes", "silent": "finishes", "waits": "finishes"}


def train(config):
    """Train like the one of `make_golden`, whose name it has, but come to an end."""
    make_golden.train({**config, "role": GONE.get(config["role"], config["role"])})
