"""Two processes of one run, forked from a process that has imported everything: one import for all tests of two processes.

`python pair.py` reads jobs, a JSON object a line: `words` of the command line, `script` that runs in place of the command, `folder`. Each
answer is a line: exit statuses, standard output and standard error of both.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from harness import ended_with

PATIENCE = 240  # seconds


def launch(table: dict[str, Any], folder: Path, script: Path | None = None) -> tuple[str, str]:
    """Runs a recipe in two processes, with the command or a script in its place; what both said, when both ended well."""
    path = folder / f"{Path(table['out']).name}.yaml"
    path.write_text(json.dumps(table))
    job = {"words": ["run", str(path)], "script": script and str(script), "folder": str(folder)}
    nursery = _nursery()
    assert nursery.stdin and nursery.stdout
    nursery.stdin.write(json.dumps(job) + "\n")
    nursery.stdin.flush()
    done = json.loads(nursery.stdout.readline())
    if done["late"]:
        pytest.fail(f"the processes wait for each other: {done['log'][-4000:]}")
    assert done["statuses"] == [0, 0], done["log"][-4000:]
    return done["said"], done["log"]


@cache
def _nursery() -> subprocess.Popen[str]:
    """One for all tests of a test process; it ends with its standard input."""
    command = [sys.executable, "-W", "ignore", __file__]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _member(rank: int, port: int, job: dict[str, Any], out: int, log: int) -> None:
    """What a fork does; it never returns."""
    os.setpgid(0, 0)
    os.dup2(out, 1)
    os.dup2(log, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in (place | {"MASTER_PORT": port}).items()})
    os.environ["MASTER_ADDR"] = "localhost"
    os.chdir(job["folder"])
    sys.argv = ["limbeck", *job["words"]]
    script = job["script"]
    os._exit(ended_with(partial(runpy.run_path, script, run_name="__main__") if script else _command))


def _command() -> None:
    from limbeck import cli

    cli.main()


def _done(job: dict[str, Any]) -> dict[str, Any]:
    """A job, from its start to the end of both."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        members = {}
        for rank in (0, 1):
            process = os.fork()
            if not process:
                _member(rank, port, job, out.fileno(), log.fileno())
            members[process] = rank
        statuses, limit = {}, time.monotonic() + PATIENCE
        while len(statuses) < 2 and time.monotonic() < limit:
            for process in members.keys() - statuses.keys():
                found, status = os.waitpid(process, os.WNOHANG)
                statuses |= {process: os.waitstatus_to_exitcode(status)} if found else {}
            time.sleep(0.01)
        for process in members.keys() - statuses.keys():
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        out.seek(0)
        log.seek(0)
        texts = {"said": out.read().decode(), "log": log.read().decode()}
        return {"late": len(statuses) < 2, "statuses": [statuses.get(process) for process in members], **texts}


def main() -> None:
    """Does the jobs."""
    import torch

    torch.set_num_threads(1)
    import limbeck.api
    import limbeck.cli
    import limbeck.running.session  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")  # forks write elsewhere
    for line in sys.stdin:
        print(json.dumps(_done(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
