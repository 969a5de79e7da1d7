"""Run Python programs in separate processes, forked from one interpreter that has done the slow imports.

Only other people's packages are imported beforehand, so that a program imports ours as a new interpreter would.
"""
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300  # seconds that a program may take


class Starter:
    """start(word, ..., cwd=, env=, processes=): what `python word ...` leaves, as subprocess.run would tell.

    Several `processes` find what torchrun tells its own; the outputs follow each other, and the status is their list.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"})

    def __call__(self, *words, cwd=ROOT, env=None, processes: int = 1) -> subprocess.CompletedProcess:
        words = list(map(str, words))
        program = {"words": words, "cwd": str(cwd), "env": dict(env or os.environ), "out": str(self.folder)}
        print(json.dumps([program, processes]), file=self.server.stdin, flush=True)
        statuses = json.loads(self.server.stdout.readline())
        stdout, stderr = ("".join((self.folder / f"{name}.{rank}").read_text() for rank in range(processes))
                          for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(words, statuses[0] if processes == 1 else statuses, stdout, stderr)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()


def become(rank: int, words: list[str], cwd: str, env: dict, out: str) -> int:
    """Run a program in this process; returns its exit status. An alarm ends one that hangs."""
    signal.alarm(LIMIT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(f"{out}/{name}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    kind = words[0] if words[0] in ("-c", "-m") else ""
    sys.path[:1] = ["" if kind else os.path.dirname(os.path.abspath(words[0])),
                    *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [kind, *words[2:]] if kind else words
    try:
        if kind == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), vars(main))
        else:
            runpy.run_path(words[0], run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1


def launch(program: dict, processes: int) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        started.append(os.fork())
        if not started[-1]:
            if processes > 1:
                program["env"] |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                                   "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                                   "MASTER_PORT": str(port)}
            status = become(rank, **program)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


if __name__ == "__main__":
    import open_clip  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(launch(*json.loads(line))), flush=True)
    os._exit(0)  # spares the second that putting all away takes
