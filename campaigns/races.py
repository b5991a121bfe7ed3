"""Races: many processes on one key and on one lease, on real stores; each race has one winner.

    python -m campaigns.races --rounds 100
    python -m campaigns.races --rounds 5 --stores local,s3

Every round has three races: to create one object, to take the lease of an experiment that nobody holds,
and to take over the lease of a holder that died. SeaweedFS lets contended conditional puts wait for each
other by the second, so few race there.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from airflow_tune_restore.exceptions import KeyExistsError, LeaseHeldError, LeaseLostError
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fs import open_store
from tests.support.storage import servers

DEAD_TTL = 0.2
ROUND_SECONDS = 900.0
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Field:
    """Who races on a store: processes, and threads in each."""

    processes: int
    threads: int

    @property
    def racers(self) -> int:
        """How many there are."""
        return self.processes * self.threads


FIELDS = {"local": Field(50, 1), "s3": Field(6, 1), "azure": Field(10, 5), "gcs": Field(10, 5)}


@dataclass
class Tally:
    """What the races on one store came to."""

    store: str
    racers: int
    rounds: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """Return one line of the table."""
        verdict = "one winner each" if not self.wrong else f"{len(self.wrong)} WRONG"
        return (
            f"{self.store:6} {self.racers:3} racers {self.rounds:4} rounds {3 * self.rounds:5} races: "
            f"{verdict}, {len(self.errors)} errors, {self.seconds:.0f} s"
        )


def race_create(store: ObjectStore, number: int, racer: str) -> bool:
    try:
        store.create(f"created/{number}", racer.encode())
    except KeyExistsError:
        return False
    return True


def race_acquire(store: ObjectStore, number: int, racer: str) -> bool:
    return _acquire(store.at(f"free-{number}"), racer)


def race_take_over(store: ObjectStore, number: int, racer: str) -> bool:
    return _acquire(store.at(f"dead-{number}"), racer)


def _acquire(experiment: ObjectStore, racer: str) -> bool:
    try:
        lease.acquire(experiment, restore_id=racer, holder=racer, ttl_seconds=3600)
    except LeaseHeldError:
        return False
    return True


RACES = {"create": race_create, "acquire": race_acquire, "take over": race_take_over}


def run_racers(url: str, names: list[str], rounds: int, start: Any, results: Any) -> None:
    """Race in each of the races of each round, in one thread a racer."""

    def run(name: str) -> None:
        store = open_store(url)
        for number in range(rounds):
            for race, enter in RACES.items():
                start.wait(ROUND_SECONDS)
                try:
                    result: Any = enter(store, number, name)
                except Exception as error:  # noqa: BLE001  it is told to the judge
                    result = f"{type(error).__name__}: {error}"
                results.put((number, race, name, result))

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def hold_races(name: str, url: str, racing: Field, rounds: int) -> Tally:
    """Let them race, and judge every race by what lies in the store afterwards."""
    store, tally = open_store(url), Tally(name, racing.racers)
    start, results = _SPAWN.Barrier(racing.racers + 1), _SPAWN.Queue()
    names = [f"racer-{number}" for number in range(racing.racers)]
    shares = [names[i :: racing.processes] for i in range(racing.processes)]
    processes = [
        _SPAWN.Process(target=run_racers, args=(url, share, rounds, start, results), daemon=True)
        for share in shares
    ]
    for process in processes:
        process.start()
    try:
        for number in range(rounds):
            for race in RACES:
                if race == "take over":
                    _die(store.at(f"dead-{number}"))
                start.wait(ROUND_SECONDS)
                if race == "create" and number == 0:
                    began = time.monotonic()
                told = [results.get(timeout=ROUND_SECONDS) for _ in names]
                assert {(entry[0], entry[1]) for entry in told} == {(number, race)}
                ended = {racer: result for _, _, racer, result in told}
                tally.errors += [str(r) for r in ended.values() if not isinstance(r, bool)]
                winners = [racer for racer, result in ended.items() if result is True]
                tally.wrong += _judge(store, number, race, winners)
            tally.rounds += 1
        tally.seconds = time.monotonic() - began
    finally:
        for process in processes:
            process.kill() if tally.rounds < rounds else process.join()
    return tally


def _die(experiment: ObjectStore) -> None:
    """Leave the lease of a restore that died."""
    lease.acquire(experiment, restore_id="dead", holder="dead", ttl_seconds=DEAD_TTL)
    # stores tell times to the second: only then is it old enough to be watched
    deadline = time.monotonic() + ROUND_SECONDS
    while time.monotonic() < deadline:
        try:
            lease.refuse_if_alive(experiment, "another")
        except LeaseHeldError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the dead holder still counts as alive")


def _judge(store: ObjectStore, number: int, race: str, winners: list[str]) -> list[str]:
    where = f"round {number}, {race}"
    if len(winners) != 1:
        return [f"{where}: {len(winners)} winners: {winners}"]
    if race == "create":
        body = store.get(f"created/{number}").decode()
        return [] if body == winners[0] else [f"{where}: {winners[0]} won, {body} is stored"]
    experiment = store.at(f"{'free' if race == 'acquire' else 'dead'}-{number}")
    try:
        held = lease.check_held(experiment, winners[0])
    except LeaseLostError as error:
        return [f"{where}: {error}"]
    claims = [e.name for e in experiment.list_dir(layout.LEASE) if e.name.endswith(".claim.json")]
    wanted = 1 if race == "acquire" else 2
    if (held.epoch, len(claims)) != (wanted, wanted):
        return [f"{where}: epoch {held.epoch}, claims {claims}"]
    return []


@contextlib.contextmanager
def served(name: str) -> Iterator[str]:
    """Start a store and yield its URL; the environment tells every process how to reach it."""
    if name == "local":
        directory = tempfile.mkdtemp(prefix="races-")
        try:
            yield directory
        finally:
            shutil.rmtree(directory)
        return
    starting = {"s3": servers.s3_server, "gcs": servers.gcs_server, "azure": servers.azure_server}
    with starting[name]() as server:
        os.environ.update(server.env)
        yield f"{server.url}/races"


def main(arguments: list[str] | None = None) -> int:
    """Hold the races; the exit code says whether each had one winner."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m campaigns.races")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--stores", default=",".join(FIELDS))
    parser.add_argument("--racers", type=int, help="processes on each store, in place of the usual")
    options = parser.parse_args(arguments)
    tallies = []
    for name in options.stores.split(","):
        racing = Field(options.racers, 1) if options.racers else FIELDS[name]
        with served(name) as url:
            tallies.append(hold_races(name, url, racing, options.rounds))
        print(tallies[-1].line(), flush=True)
        for wrong in tallies[-1].wrong[:20]:
            print(f"WRONG {wrong}", flush=True)
        for error in sorted(set(tallies[-1].errors))[:5]:
            print(f"error {json.dumps(error)}", flush=True)
    return 1 if any(tally.wrong or tally.rounds < options.rounds for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
