"""Simulates nights: real protocol, restore and commit code in worlds that a seed decides.

    python -m tests.simulation --nights 1000000          a million nights on all cores
    python -m tests.simulation --nights 2000 --seed 7    the worlds of seed 7, the same every time
    python -m tests.simulation --only 70000012 --story   one world, and what happened in it

A night is one DAG run of the chain. A world is one experiment: one to three nights with faults, then two
quiet ones. The worlds of campaigns with different seeds differ, so their nights may be added up. A world
that breaks an invariant is made smaller, its story is printed, and the exit code is 1.
"""

import argparse
import os
import random
import sys
import time

from tests.simulation.campaign import Tally, explain, run_campaign


def main(arguments: list[str]) -> int:
    """Simulate what the arguments ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nights", type=int, default=2000)
    parser.add_argument("--seed", type=int, help="of the campaign; drawn and printed by default")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, metavar="SEED", help="simulate this one world")
    parser.add_argument("--story", action="store_true", help="with --only: print its story")
    parser.add_argument(
        "--all", action="store_true", help="with --only: all requests, not made smaller"
    )
    given = parser.parse_args(arguments)
    if given.only is not None:
        return _one(given.only, is_told=given.story, everything=given.all)
    seed = given.seed if given.seed is not None else random.randrange(10**6)
    return _campaign(seed, given.nights, given.processes)


def _one(seed: int, *, is_told: bool, everything: bool) -> int:
    text, has_failed = explain(seed, everything=everything, shrinks=not everything)
    print(text if is_told or has_failed else f"World {seed} breaks no invariant.")
    return int(has_failed)


def _campaign(seed: int, nights: int, processes: int) -> int:
    print(f"seed {seed}: {nights:,} nights on {processes} processes", flush=True)
    began = time.monotonic()
    total = run_campaign(seed, nights, processes, lambda line: print(line, flush=True))
    for world, failure in total.failures:
        print(f"\nWorld {world} fails: {failure}\nMade smaller:\n", flush=True)
        print(explain(world)[0], flush=True)
    _print_result(total, time.monotonic() - began)
    return 1 if total.failures else 0


def _print_result(total: Tally, seconds: float) -> None:
    print()
    for kind, times in sorted(total.struck.items()):
        print(f"{times:>12,} {kind}")
    print(f"{total.line()}, {seconds:,.0f} s in all", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
