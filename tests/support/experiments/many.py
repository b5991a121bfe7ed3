"""A prefix as a team has it: hundreds of experiments on S3, one with thousands of trials, odd names."""

import json
import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.experiments.built import KILLED, STATE_NAME, make_row, make_state
from tests.support.storage.servers import Server

LARGE = "vision/resnet_5000"
"""The path of the experiment with thousands of trials."""

HOSTILE_TEXT = "<img src=x onerror=\"document.title='hacked'\">\u202edetrever\nand a second line"
"""Markup, a bidi override and a line break: in a config, and in the id of no trial."""

HOSTILE = "<b onmouseover=alert(1)>odd & 'quoted'"
"""The name of an experiment: a store allows it, and an address can hold it."""

_TEAMS = ("vision", "speech", "ranking", "forecast")
_MODELS = ("resnet", "conformer", "two_tower", "tft", "vit", "lstm")
_SEARCHER = next(KILLED.glob("basic-variant-state-*")).name


def fill(server: Server, prefix: str, *, experiments: int = 300, trials: int = 5000) -> None:
    """Put that many experiments below a path of the bucket, the large one and the odd one among them."""
    paths = [f"{_TEAMS[n % 4]}/{_MODELS[n % 6]}_{n:03d}" for n in range(max(0, experiments - 2))]
    bodies: dict[str, bytes] = {}
    for number, path in enumerate(paths):
        bodies |= _experiment(f"{prefix}/{path}", number)
    bodies |= _files(f"{prefix}/{LARGE}", make_state(list(_large_rows(trials))))
    odd = [_row("odd_00000", "ERROR", 0.5, 3, {"note": HOSTILE_TEXT, "<b>key</b>": "<i>1</i>"})]
    bodies |= _files(
        f"{prefix}/{HOSTILE}", make_state([*odd, _row("odd_00001", "TERMINATED", 0.25, 9, {})])
    )
    put_all(server, bodies)


def put_all(server: Server, bodies: dict[str, bytes]) -> None:
    """Put objects into the bucket, the states last, as Ray does."""
    from obstore.store import S3Store

    client = S3Store(
        server.bucket,
        endpoint=server.endpoint,
        access_key_id=server.env["AWS_ACCESS_KEY_ID"],
        secret_access_key=server.env["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )

    states = [key for key in bodies if key.endswith(STATE_NAME)]
    with ThreadPoolExecutor(32) as threads:
        for keys in ([key for key in bodies if key not in states], states):
            list(threads.map(lambda key: client.put(key, bodies[key]), keys))


def _experiment(path: str, number: int) -> dict[str, bytes]:
    """Return the files of a small experiment: most have finished, each twentieth has failed."""
    rng = random.Random(number)
    ends = {0: "ERROR", 7: "RUNNING", 13: "PENDING"}
    rows, results = [], {}
    for index in range(4 + number % 5):
        status = ends.get((number + index) % 20, "TERMINATED") if number % 3 == 0 else "TERMINATED"
        lr, iterations = 10 ** rng.uniform(-4, -1), 30 if status == "TERMINATED" else 12
        trial_id = f"{number:05x}_{index:05d}"
        curve = [_score(lr, i) + rng.gauss(0, 0.006) for i in range(1, iterations + 1)]
        config = {"lr": lr, "batch_size": 2 ** rng.randrange(4, 9), "depth": rng.randrange(2, 8)}
        rows.append(_row(trial_id, status, curve[-1], iterations, config))
        results[f"{path}/dir_{trial_id}/result.json"] = _results(trial_id, curve)
        if status == "ERROR":
            results[f"{path}/dir_{trial_id}/error.txt"] = _ERROR.encode()
    return {**results, **_files(path, make_state(rows))}


_ERROR = """Failure # 1 (occurred at 2026-11-30_02-11-09)
Traceback (most recent call last):
  File "/opt/train/model.py", line 212, in forward
    return self.head(torch.cat([x, y], dim=1))
RuntimeError: Sizes of tensors must match except in dimension 1. Expected size 64 but got size 32
"""


def _large_rows(trials: int) -> Iterator[list[str]]:
    rng = random.Random(5000)
    for index in range(trials):
        status = "ERROR" if index % 50 == 0 else "TERMINATED"
        lr = 10 ** rng.uniform(-5, -1)
        config = {
            "lr": lr,
            "batch_size": 2 ** rng.randrange(4, 9),
            "dropout": round(rng.uniform(0, 0.5), 3),
            "optimizer": {
                "name": rng.choice(["adam", "sgd", "lion"]),
                "weight_decay": rng.random(),
            },
        }
        yield _row(f"5a5a5_{index:05d}", status, _score(lr, 20), 20, config)


def _score(lr: float, iteration: int) -> float:
    """Return what a model of this learning rate has learned after so many iterations."""
    best = 1 - abs(math.log10(lr) + 2.5) / 5
    return best * (1 - math.exp(-iteration / 8))


def _row(
    trial_id: str, status: str, score: float, iterations: int, config: dict[str, object]
) -> list[str]:
    result = {
        "score": score,
        "loss": 1 - score,
        "training_iteration": iterations,
        "time_total_s": iterations * 2.5,
        "timestamp": 1_795_000_000 + iterations * 3,
        "done": status == "TERMINATED",
        "trial_id": trial_id,
        "config": config,
    }
    return make_row(
        trial_id,
        status=status,
        last_result=result,
        last_result_time=1_795_000_000.0 + iterations * 3,
        error=status == "ERROR",
        config=config,
        evaluated_params={name: value for name, value in config.items() if name != "note"},
    )


def _results(trial_id: str, curve: list[float]) -> bytes:
    lines = [
        {
            "score": score,
            "loss": 1 - score,
            "training_iteration": number,
            "time_total_s": number * 2.5,
            "timestamp": 1_795_000_000 + number * 3,
            "trial_id": trial_id,
        }
        for number, score in enumerate(curve, 1)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _files(path: str, state: bytes) -> dict[str, bytes]:
    kept = {f"{path}/{name}": Path(KILLED, name).read_bytes() for name in ("tuner.pkl", _SEARCHER)}
    return {**kept, f"{path}/{STATE_NAME}": state}
