"""Programs in two processes each, as torchrun starts them, from one interpreter that has imported what takes seconds.

Reads {"cwd", "arguments", "out"} as a line of JSON for each program, whose ranks leave what they print in
OUT/stdout.RANK and OUT/stderr.RANK, and answers with their exit statuses.
"""
import json
import os
import runpy
import socket
import sys
import traceback

import train  # noqa: F401 (so that the processes have it)
from p2c.trainers import base  # noqa: F401

PROCESSES = 2


def become(rank: int, port: int, cwd: str, arguments: list[str], out: str) -> int:
    """Run the program here; its exit status."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(f"{out}/{name}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(cwd)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(PROCESSES), LOCAL_WORLD_SIZE=str(PROCESSES),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.path.insert(0, cwd)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1


def start(**program) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(PROCESSES):
        started.append(os.fork())
        if not started[-1]:
            status = become(rank, port, **program)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(start(**json.loads(line))), flush=True)
