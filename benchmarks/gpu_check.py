"""Check and measure this package on a GPU in at most eight minutes; write a Markdown page for docs/performance.md.

    python benchmarks/gpu_check.py [--out gpu.md] [--wheels FOLDER] [--quick]

It runs tests/test_gpu.py, the step benchmark, the projection of the base-to-novel grid, and a training of P2C in fp16
on the generated shapes. A part that takes longer than its share of the time is ended; the others still run. No network
is used: packages that are missing are taken from a FOLDER of wheels, and installed for this check only.

Exit status: 0 all parts ran and the tests passed, 1 not so.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parts(quick: bool, output: str) -> list[tuple[str, int, list[str]]]:
    """Return the name of each part, its seconds at most, and its command."""
    benchmark = ["--quick"] if quick else []
    training = ["train.py", "--trainer", "P2C", "--root", f"{output}/data", "--seed", "1", "--output-dir",
                f"{output}/run", "--dataset-config-file", "configs/datasets/shapes.yaml", "--config-file",
                "configs/trainers/P2C/tiny_shapes.yaml", "TRAINER.P2C.PREC", "fp16"]
    return [
        ("Tests", 150, ["-m", "pytest", "-q", "--no-header", "tests/test_gpu.py"]),
        ("A training step", 100, ["benchmarks/step.py", *benchmark]),
        ("The base-to-novel grid", 150, ["benchmarks/grid.py", *benchmark]),
        ("P2C in fp16 on shapes", 80, [*training, *(["OPTIM.MAX_EPOCH", "1"] if quick else [])]),
    ]


def run(command: list[str], limit: int, env: dict[str, str]) -> tuple[int | None, str]:
    """Run python with a command; return its exit status, None if it was ended after `limit` seconds, and its output."""
    with tempfile.TemporaryFile("w+") as file:
        try:
            status = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, stdout=file, timeout=limit,
                                    stderr=subprocess.STDOUT).returncode
        except subprocess.TimeoutExpired:
            status = None
        file.seek(0)
        return status, file.read()


def shortened(output: str) -> str:
    """Return what a page needs of an output: a training's many lines end with its results."""
    _, found, results = output.rpartition("Evaluate on the *test* set")
    return found + results if found else output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu.md", help="default: %(default)s")
    parser.add_argument("--wheels", metavar="FOLDER", help="wheels of packages that are missing here")
    parser.add_argument("--quick", action="store_true", help="a rehearsal on the tiny tower")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if args.wheels:
            wheels = [os.fspath(wheel) for wheel in sorted(Path(args.wheels).glob("*.whl"))]
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target",
                            f"{folder}/packages", *wheels], check=True)
            env["PYTHONPATH"] = os.pathsep.join([f"{folder}/packages", env["PYTHONPATH"]])
        page = [f"# On a GPU, {date.today()}\n"]
        for name, limit, command in parts(args.quick, folder):
            print(f"{name} ...", flush=True)
            start = time.perf_counter()
            status, output = run(command, limit, env)
            ending = f"ended after {limit} s" if status is None else f"exit status {status}"
            failed |= status != 0
            words = " ".join(command).replace(folder, "output")
            page.append(f"## {name}\n`python {words}`: {ending}, {time.perf_counter() - start:.0f} s\n"
                        f"```text\n{shortened(output).strip()}\n```\n")
            print(f"{ending}, {time.perf_counter() - start:.0f} s", flush=True)
            Path(args.out).write_text("\n".join(page), encoding="utf-8")  # whatever happens to the next part
    print(f"Written to {args.out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
