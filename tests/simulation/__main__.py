"""Simulates nights: real protocol, restore and commit code in worlds that a seed decides.

    python -m tests.simulation --nights 1000000          a million nights on all cores
    python -m tests.simulation --nights 2000 --seed 7    the worlds of seed 7
    python -m tests.simulation --only 70000012 --story   one world, and what happens in it
    python -m tests.simulation --plants                  the planted mistakes, and when each is found

A night is one DAG run of the chain. A world is one experiment: one to three nights with faults, then two
quiet ones. The worlds of campaigns with different seeds differ, so their nights may be added up. A world
that breaks an invariant is made smaller, its story is printed, and the exit code is 1.
"""

import argparse
import multiprocessing
import os
import random
import sys
import time

from tests.simulation.campaign import (
    Tally,
    explain,
    run_campaign,
    simulating,
)
from tests.simulation.night import draw_script, simulate
from tests.simulation.planting import MOST_NIGHTS
from tests.simulation.plants import PLANTS, search
from tests.simulation.story import tell


def main(arguments: list[str]) -> int:
    """Simulate what the arguments ask for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nights", type=int, default=2000, help="how many, at least")
    parser.add_argument(
        "--seed", type=int, help="of the campaign; by default drawn and printed, with --plants 0"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="by default one per core"
    )
    parser.add_argument("--only", type=int, metavar="SEED", help="simulate the world of this seed")
    parser.add_argument("--story", action="store_true", help="with --only: print its story")
    parser.add_argument("--all", action="store_true", help="with --story: print all requests")
    parser.add_argument("--plants", action="store_true", help="search for the planted mistakes")
    given = parser.parse_args(arguments)
    if min(given.nights, given.processes) < 1:
        parser.error("--nights and --processes are 1 or more")
    if (given.story or given.all) and given.only is None:
        parser.error("--story and --all need --only SEED")
    if given.plants and given.only is not None:
        parser.error("--plants and --only exclude each other")
    if given.only is not None:
        return run_one(given.only, tells=given.story or given.all, everything=given.all)
    if given.plants:
        return search_plants(given.seed or 0, given.processes)
    seed = random.randrange(10**6) if given.seed is None else given.seed
    return run_many(seed, given.nights, given.processes)


def run_one(seed: int, *, tells: bool, everything: bool) -> int:
    """Simulate one world; print its story, or what it came to."""
    with simulating():
        script = draw_script(seed)
        ended = simulate(script)
        if tells:
            print(tell(script, everything=everything))
        else:
            print(explain(ended) if ended.failure else f"World {seed} breaks no invariant.")
    return int(bool(ended.failure))


def run_many(seed: int, nights: int, processes: int) -> int:
    """Run a campaign; print its failures, made smaller, and what it came to."""
    print(f"seed {seed}: {nights:,} nights on {processes} processes", flush=True)
    began = time.monotonic()
    total = run_campaign(seed, nights, processes, lambda line: print(line, flush=True))
    seconds = time.monotonic() - began
    with simulating():
        for world, _failure in total.failures:
            print(f"\n{explain(simulate(draw_script(world)))}", flush=True)
    _print_result(total, seconds)
    return int(bool(total.failures))


def _print_result(total: Tally, seconds: float) -> None:
    print()
    for kind, times in sorted(total.struck.items()):
        print(f"{times:>12,} {kind}")
    print(f"{total.line()}, {seconds:,.0f} s in all", flush=True)


def search_plants(seed: int, processes: int) -> int:
    """Search for each plant in the worlds of a campaign; print the table of docs/reliability.md."""
    print(
        "| plant | mistake | found by | world | nights |",
        "|---|---|---|---|---|",
        sep="\n",
        flush=True,
    )
    missed = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name, found in pool.imap(search, [(name, seed) for name in PLANTS]):
            row = (
                f"{PLANTS[name].breaks} | {found.seed} | {found.nights:,}"
                if found is not None
                else f"**not found** | | {MOST_NIGHTS:,}"
            )
            print(f"| {name} | {PLANTS[name].what} | {row} |", flush=True)
            missed += [name] if found is None else []
    print(f"\nseed {seed}: {len(PLANTS) - len(missed)} of {len(PLANTS)} found")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
