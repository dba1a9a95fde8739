"""How long threads spin before they sleep: tokens/s of a small training, alone and beside busy processes; one thread last.

python -m benchmarks.waiting [seconds of each]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from time import perf_counter

from benchmarks.race import Over, beside
from limbeck.system.environment import WAITING

SPINS = (300, 1000, 3000, 10_000, 100_000)
PASSIVE, ONE = {"OMP_WAIT_POLICY": "passive"}, {"OMP_NUM_THREADS": "1"}
WAYS = ({}, PASSIVE, *({"GOMP_SPINCOUNT": str(n)} for n in SPINS), ONE)
WARM = 3  # steps


def train(seconds: float) -> float:
    """Tokens a second in this process, whose environment is read when torch is imported."""
    from benchmarks import sides
    from benchmarks.saving import SHAPES

    shape, begin, steps = SHAPES["6x256_to_3x128"], 0.0, 0

    def turns() -> Iterator[None]:
        nonlocal begin, steps
        for _ in range(WARM):
            yield
        begin = perf_counter()
        while perf_counter() - begin < seconds:
            steps += 1
            yield
        raise Over

    try:
        sides.limbeck(turns(), shape)
    except Over:
        return steps * shape.tokens / (perf_counter() - begin)
    raise AssertionError("the loop ended before its turns")


def main() -> None:
    """Every way alone, beside one busy process, and beside two, each in a process of its own."""
    if sys.argv[1:2] == ["train"]:
        print(train(float(sys.argv[2])))
        return
    seconds = sys.argv[1] if len(sys.argv) > 1 else "10"
    print(f"{'':28}{'alone':>10}{'beside 1':>10}{'beside 2':>10}")
    for way in WAYS:
        env = {name: value for name, value in os.environ.items() if name not in WAITING} | way
        command = [sys.executable, "-m", "benchmarks.waiting", "train", seconds]
        found = []
        for busy in (0, 1, 2):
            with beside(busy):
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            found.append(float(done.stdout.splitlines()[-1]))
        name = " ".join(f"{key}={value}" for key, value in way.items()) or "as torch is"
        print(f"{name:28}" + "".join(f"{value:10,.0f}" for value in found), flush=True)


if __name__ == "__main__":
    main()
