"""Runs that end badly, in forks of one process that has imported everything: `python harness.py`, jobs on standard input.

A job is a JSON object a line: `recipe`, and how it ends: `kill` (at the n-th write), `after` (SIGKILL when it has worked
so many seconds), `limit` (bytes of the largest file), `signal` (numbers of signals, sent at the n-th call of a function `module:name`),
`clock` (what its clocks show, see `wind`), or not at all. Each answer is a line: exit status (negative: a signal), seconds, those of work, writes, standard error.
"""

from __future__ import annotations

import builtins
import importlib
import io
import itertools
import json
import math
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KILLED = 137


class Writes:
    """Counts what a process does to the disk, and ends it at one of them."""

    def __init__(self, last: int | None) -> None:
        self.last, self.count = last, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.last:
            os._exit(KILLED)

    def before(self, place: Any, name: str, writes: Callable[..., bool] = lambda *_, **__: True) -> None:
        """Counts the calls of a function that write."""
        plain = getattr(place, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            if writes(*arguments, **more):
                self()
            return plain(*arguments, **more)

        setattr(place, name, counted)


def opened_to_write(file: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
    return any(letter in mode for letter in "wax+") and not isinstance(file, int)


def inject(last: int | None) -> Writes:
    """Every way in which limbeck changes the disk: names, folders, files that are opened to write, syncs."""
    from limbeck.running import session
    from limbeck.training import checkpoint

    writes = Writes(last)
    for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir"):
        writes.before(os, name)
    writes.before(builtins, "open", opened_to_write)
    writes.before(io, "open", opened_to_write)
    writes.before(checkpoint, "save_file")
    writes.before(session.pq, "write_table")
    return writes


def send(numbers: list[int], at: str, call: int) -> None:
    """Has the process send signals to itself, all in one moment, when a function is called for the n-th time."""
    module, _, path = at.partition(":")
    *parts, name = path.split(".")
    place: Any = importlib.import_module(module)
    for part in parts:
        place = getattr(place, part)
    plain, calls = getattr(place, name), []

    def signalled(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
            for number in numbers:
                signal.pthread_kill(threading.get_ident(), number)  # no other thread may take it before the rest
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        return plain(*arguments, **more)

    setattr(place, name, signalled)


def wind(ahead: float, step: float) -> None:
    """All clocks that limbeck reads are so many seconds ahead, and go on by `step` at each reading, whatever the time is."""
    readings = itertools.count()

    def reading(plain: Callable[[], float]) -> Callable[[], float]:
        begin = plain() + ahead
        return lambda: begin + step * next(readings)

    wound = {name: reading(getattr(time, name)) for name in ("time", "monotonic", "perf_counter")}

    class Set(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromtimestamp(wound["time"](), tz)

    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "limbeck"]
    for module in modules:
        for name, value in list(vars(module).items()):
            if value is getattr(time, name, None) and name in wound:
                setattr(module, name, wound[name])
            elif value is datetime:
                setattr(module, name, Set)
            elif value is time:
                setattr(module, name, SimpleNamespace(**{**vars(time), **wound}))


def ended_with(call: Callable[[], Any]) -> int:
    """The exit status of a program that runs in this process; what it said is written."""
    status = 0
    try:
        call()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def child(job: dict[str, Any], log: str, counts: str) -> None:
    """What a fork does; it never returns."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.dup2(descriptor, 1)
    from limbeck import cli
    from limbeck.lab.page import report
    from limbeck.running import profile

    if not job.get("page"):
        report.write = lambda folder: folder  # pyright: ignore[reportAttributeAccessIssue]
        profile.of_study = lambda *_, **__: {"models": []}  # pyright: ignore[reportAttributeAccessIssue]
    if job.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if job.get("signal"):
        send(**job["signal"])
    if job.get("clock"):
        wind(**job["clock"])
    writes = inject(job.get("kill"))
    sys.argv = ["limbeck", "run", job["recipe"], *job.get("more", [])]
    status = ended_with(cli.main)
    with open(counts, "w") as file:
        file.write(str(writes.count))
    os._exit(status)


def ended(process: int, after: float | None) -> tuple[int, float]:
    """Exit status, and seconds of processor time; killed when it has used `after` of them, however busy the machine is."""
    clock, limit = (~process << 3) | 2, math.inf if after is None else after  # Linux: the clock of another process
    wait = os.WNOHANG if after is not None else 0
    while True:
        found, status, used = os.wait4(process, wait)
        if found:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if time.clock_gettime(clock) >= limit:
            os.kill(process, signal.SIGKILL)
            wait = 0
        time.sleep(0.001)


def counted(recipe: str) -> bool:
    """Counts the shapes of a recipe here, if it is sound: no fork has to count them again."""
    from limbeck.assemble import costs, design
    from limbeck.errors import UserError
    from limbeck.recipe import stages

    try:
        for plan in design.chain(stages.expand(recipe)).values():
            costs.of_study(plan)
    except UserError:
        return False
    return True


def done(job: dict[str, Any]) -> dict[str, Any]:
    """A job, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        log, counts = os.path.join(folder, "log"), os.path.join(folder, "counts")
        begin = time.monotonic()
        process = os.fork()
        if not process:
            child(job, log, counts)
        status, worked = ended(process, job.get("after"))
        seconds = time.monotonic() - begin
        count = int(Path(counts).read_text()) if os.path.exists(counts) else None
        return {"status": status, "seconds": seconds, "worked": worked, "writes": count, "said": Path(log).read_text()}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    import limbeck.api
    import limbeck.cli
    import limbeck.lab.page.report
    import limbeck.running.session  # noqa: F401

    warm = False
    for line in sys.stdin:
        job = json.loads(line)
        warm = warm or counted(job["recipe"])
        print(json.dumps(done(job)), flush=True)


if __name__ == "__main__":
    main()
