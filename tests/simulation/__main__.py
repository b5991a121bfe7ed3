"""Simulates nights: real protocol, restore and commit code in worlds that a seed decides.

    python -m tests.simulation --nights 1000000          a million nights on all cores
    python -m tests.simulation --nights 2000 --seed 7    the worlds of seed 7
    python -m tests.simulation --only 70000012 --story   world 12 of seed 7, and what happens in it
    python -m tests.simulation --plants                  the planted mistakes, and when each is found

A night is one DAG run of the chain. A world is one experiment: one to three nights with faults, then two
or three quiet ones. The worlds of campaigns with different seeds differ, so their nights may be added up.
The same seed, nights and processes simulate the same worlds.

Each world that breaks an invariant is named at once. At the end, the first one of each invariant is made
smaller, and its story is printed. After 20 such worlds a campaign ends.

Exit codes: 0 if no invariant was broken, 1 if one was, 2 for a wrong argument, 130 after Ctrl-C.
"""

import argparse
import multiprocessing
import os
import random
import sys
import time

from tests.simulation.campaign import explain, run_campaign, simulating
from tests.simulation.night import draw_script, simulate
from tests.simulation.planting import MOST_NIGHTS
from tests.simulation.plants import PLANTS, search
from tests.simulation.shrink import kind_of
from tests.simulation.story import tell

NIGHTS = 2000


def main(arguments: list[str]) -> int:
    """Simulate what the arguments ask for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nights", type=int, help=f"how many, at least; default: {NIGHTS}")
    parser.add_argument(
        "--seed", type=int, help="seed of the campaign; default: drawn and printed; 0 with --plants"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="default: one per core"
    )
    parser.add_argument("--only", type=int, metavar="WORLD", help="simulate only this world")
    parser.add_argument("--story", action="store_true", help="with --only: print its story")
    parser.add_argument(
        "--requests", action="store_true", help="with --only: print its story with all requests"
    )
    parser.add_argument("--plants", action="store_true", help="search for the planted mistakes")
    given = parser.parse_args(arguments)
    if (given.nights or 1) < 1 or given.processes < 1:
        parser.error("--nights and --processes are 1 or more")
    if given.only is not None:
        if given.plants or (given.nights, given.seed) != (None, None):
            parser.error("--only WORLD excludes --nights, --seed and --plants")
        return run_one(given.only, tells=given.story or given.requests, everything=given.requests)
    if given.story or given.requests:
        parser.error("--story and --requests need --only WORLD")
    if given.plants:
        if given.nights is not None:
            parser.error("--plants excludes --nights")
        return search_plants(given.seed or 0, given.processes)
    seed = random.randrange(10**6) if given.seed is None else given.seed
    return run_many(seed, given.nights or NIGHTS, given.processes)


def run_one(seed: int, *, tells: bool, everything: bool) -> int:
    """Simulate one world; print its story, or what it came to."""
    with simulating():
        script = draw_script(seed)
        ended = simulate(script)
        if tells:
            print(tell(script, everything=everything))
        else:
            print(
                explain(seed, ended.failure)
                if ended.failure
                else f"World {seed} breaks no invariant."
            )
    return int(bool(ended.failure))


def run_many(seed: int, nights: int, processes: int) -> int:
    """Run a campaign; print its failures, made smaller, and what it came to."""
    on = f"{processes} {'process' if processes == 1 else 'processes'}"
    print(f"seed {seed}: {nights:,} nights on {on}", flush=True)
    began = time.monotonic()
    total = run_campaign(seed, nights, processes, lambda line: print(line, flush=True))
    seconds = time.monotonic() - began
    first_of_kind = {kind_of(why): (world, why) for world, why in reversed(total.failures)}
    with simulating():
        for world, why in first_of_kind.values():
            print(f"\n{explain(world, why)}", flush=True)
    print("\nWhat happened in these worlds:")
    for what, times in sorted(total.struck.items()):
        print(f"{times:>12,} times: {what}")
    if total.is_interrupted:
        print(f"Interrupted, before {nights:,} nights were simulated.")
    elif total.nights < nights:
        print(
            f"Ended after {len(total.failures)} failures, before {nights:,} nights were simulated."
        )
    print(f"seed {seed}: {total.line()}, {seconds:,.0f} s in all", flush=True)
    return 1 if total.failures else 130 if total.is_interrupted else 0


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
