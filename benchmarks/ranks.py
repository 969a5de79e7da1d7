"""Speed-up of a training step of P2C by several processes of torchrun on the same global batch.

    python benchmarks/ranks.py [--processes 1 2 4] [--batch 32] [--classes 100] [--precision fp16] [--device cuda]
    python benchmarks/ranks.py --quick    a dry run of a few seconds on a tiny tower

The benchmark starts torchrun itself. Each process has one GPU or, on a CPU, the same number of threads however many
processes there are, so that more processes use more of the machine. A step is a training step: forward, backward,
averaging of the gradients, update. Each process encodes all classes' texts and its share of the images, so the ideal
(the time of one process divided by their number) is out of reach; "of ideal" is the share that is reached. Weights and
images are random; reading images is not counted.
"""
import argparse
import os
import subprocess
import sys

import torch
from common import Setting, build, machine, made_up, options, peak_memory, seconds
from tabulate import tabulate

from p2c.engine.distributed import barrier, is_main, join, leave, processes, shard
from p2c.trainers.p2c import P2C

RESULT = "RESULT"


def take_part(setting: Setting, steps: int) -> None:
    """Run one of the processes; the main one prints the seconds of a step and the bytes of its memory."""
    join(use_cuda=setting.device != "cpu")
    trainer = build(P2C, setting)
    images, labels = (shard(some) for some in made_up(trainer, setting.batch, setting.classes))
    batch = {"img": images, "label": labels}

    def train(count: int) -> None:
        for _ in range(count):
            trainer.forward_backward(batch)

    train(1 if setting.device == "cpu" else 5)  # warm-up
    barrier()
    time = seconds(lambda: train(steps), setting.device) / steps
    if is_main():
        print(RESULT, time, peak_memory(setting.device), processes(), flush=True)
    leave()


def measure(count: int, threads: int, args: argparse.Namespace) -> tuple[float, int]:
    """Return the seconds of a step and the bytes of one process's memory, with `count` processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count] if count > 1 else []
    words = [sys.executable, *launcher, __file__, "--take-part", "--device", args.device, "--batch", args.batch,
             "--classes", args.classes, "--precision", args.precision, "--steps", args.steps]
    if args.quick:
        words.append("--quick")
    environ = dict(os.environ)
    if args.device == "cpu":
        environ["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, env=environ, check=True)
    time, memory, found = done.stdout.split(RESULT)[1].split()[:3]
    if int(found) != count:
        raise SystemExit(f"torchrun started {found} processes instead of {count}")
    return float(time), int(memory)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--processes", type=int, nargs="+",
                        help="default: powers of 2 that divide the batch, up to the number of GPUs (cores, at most 4)")
    parser.add_argument("--batch", type=int, help="global batch (default: 4; on a GPU 32)")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--precision", help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--steps", type=int, help="measured steps (default: 3; on a GPU 30)")
    parser.add_argument("--take-part", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = args.device != "cpu"
    args.batch = args.batch or (32 if gpu else 4)
    args.precision = args.precision or ("fp16" if gpu else "fp32")
    default_steps = 30 if gpu else 3
    args.steps = args.steps or (1 if args.quick else default_steps)
    if args.take_part:
        take_part(Setting(args.classes, args.batch, args.precision, args.device, args.quick), args.steps)
        return
    places = torch.cuda.device_count() if gpu else min(4, os.cpu_count() or 1)
    counts = args.processes or [2**power for power in range(places.bit_length())
                                if args.batch % 2**power == 0]
    threads = max(1, (os.cpu_count() or 1) // max(counts))
    print(machine(args.device), flush=True)
    rows, one = [], None
    for count in counts:
        time, memory = measure(count, threads, args)
        one = one or time * count  # estimated from the first measurement if that is of several processes
        rows.append([count, args.batch, args.classes, args.precision, "" if gpu else threads, f"{time:.4f}",
                     f"{args.batch / time:.2f}", f"{one / time:.2f}", f"{one / time / count:.0%}",
                     f"{memory / 2**30:.2f}"])
    print(tabulate(rows, ["processes", "batch", "classes", "precision", "threads each", "step (s)", "images/s",
                          "speed-up", "of ideal", "peak of one (GiB)"], disable_numparse=True, stralign="right"))
    print(machine(args.device))


if __name__ == "__main__":
    main()
