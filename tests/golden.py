# ruff: noqa: E501
"""Record what a tree of the project does, to compare two trees with:  python tests/golden.py TREE OUT.json [--only WORD]

Trains every trainer plain, with denoising, with attributes and with a cloud, each as a whole run, killed inside an epoch
and resumed, and as two ranks, on tiny-shapes and on a random small CLIP with quick-GELU. Of each run: digests of the
trained tensors, metrics, logged losses, the log's lines, the files. Only commands and files of the tree are used.

    python tests/golden.py --compare OLD.json NEW.json
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from processes import Starter  # noqa: E402

TRAINED = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "P2C")
DENOISING = {"plain": ("TRAINER.PROMPT_DENOISING.ENABLED", "False"), "denoising": ("TRAINER.PROMPT_DENOISING.ENABLED", "True")}
ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", "True", "TRAINER.ATPROMPT.ATT_NUM", "1", "TRAINER.ATPROMPT.ATT1_TEXT", "color")
CLOUD = ("TEST.CLOUD_SAMPLES", "3")
VARIANTS = {
    "plain": (TRAINED + ("ZeroshotCLIP", "ZeroshotCLIP2"), DENOISING["plain"]),
    "denoising": (tuple(name for name in TRAINED if name != "VPT"), DENOISING["denoising"]),
    "attributes": (("CoOp", "MaPLe", "P2C"), DENOISING["denoising"] + ATTRIBUTES),
    "cloud": (("CoOp", "IVLP", "MaPLe", "PromptSRC", "P2C"), DENOISING["denoising"] + CLOUD),
}
KINDS = ("whole", "killed", "ranks")
BACKBONES = {"tiny": (), "small": ("MODEL.BACKBONE.NAME", "small-quick", "MODEL.BACKBONE.WEIGHTS", "random",
                                   "INPUT.SIZE", "(32, 32)", "INPUT.PIXEL_MEAN", "[0.48145466, 0.4578275, 0.40821073]",
                                   "INPUT.PIXEL_STD", "[0.26862954, 0.26130258, 0.27577711]")}
SMALL = {"embed_dim": 32, "quick_gelu": True,
         "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "patch_size": 8},
         "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 4}}
PLUGIN = '''
import os, signal
import open_clip, torch
open_clip.add_model_config(os.path.dirname(os.path.abspath(__file__)))
due = int(os.environ.get("GOLDEN_KILL", 0))
done = 0

def step(optimizer, args, kwargs):
    global done
    done += 1
    if done == due:
        os.kill(os.getpid(), signal.SIGKILL)

if due:
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(step)
'''


def cases(only):
    for backbone in BACKBONES:
        for variant, (trainers, pairs) in VARIANTS.items():
            for trainer in trainers:
                for kind in KINDS:
                    name = f"{backbone}/{variant}/{trainer}/{kind}"
                    if only in name:
                        yield name, backbone, trainer, kind, pairs


def run(start, tree, work, data, name, backbone, trainer, kind, pairs):
    out = work / name
    zero = trainer.startswith("Zeroshot")
    command = [tree / "train.py", "--plugin", "golden_plugin", "--trainer", trainer, "--root", data, "--seed", "1",
               "--output-dir", out, "--dataset-config-file", tree / "configs/datasets/shapes.yaml",
               "--config-file", tree / f"configs/trainers/{trainer.removesuffix('2')}/tiny_shapes.yaml",
               *(["--eval-only"] if zero else []),
               "DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False",
               "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "TRAIN.PRINT_FREQ", "1", "TRAIN.CHECKPOINT_STEPS", "1",
               *BACKBONES[backbone], *pairs]
    env = {**os.environ, "PYTHONPATH": str(work), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    statuses = []
    if kind == "killed" and not zero:
        statuses.append(start(*command, cwd=tree, env={**env, "GOLDEN_KILL": "5"}).returncode)
    done = start(*command, cwd=tree, env=env, processes=2 if kind == "ranks" else 1)
    statuses.append(done.returncode)
    record = describe(out, {str(out): "OUT", str(tree): "TREE", str(data): "DATA", str(work): "WORK"})
    record["statuses"], record["stderr"] = statuses, done.stderr[-2000:] if any(
        status for status in statuses if status not in (0, [0, 0], -9)) else ""
    shutil.rmtree(out, ignore_errors=True)
    return record


def describe(out, places):
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = {"files": sorted(re.sub(r"(events\.out\.tfevents).*", r"\1", re.sub(r"(log\.txt)-.*", r"\1-", str(
        path.relative_to(out)))) for path in out.rglob("*")) if out.exists() else []}
    record["files"] = sorted(set(record["files"]))
    record["tensors"] = {}
    for path in sorted(out.glob("*/model*.pth.tar*")):
        digest = hashlib.sha256()
        for key, value in torch.load(path)["state_dict"].items():
            digest.update(key.encode() + str(tuple(value.shape)).encode() + value.numpy().tobytes())
        record["tensors"][str(path.relative_to(out))] = digest.hexdigest()
    results = out / "results.json"
    if results.exists():
        content = json.loads(results.read_text())
        record["metrics"] = {key: content.get(key) for key in ("metrics", "epoch", "finished", "mode", "split", "data")}
        record["keys"] = sorted(content)
    if (out / "tensorboard").exists():
        events = EventAccumulator(str(out / "tensorboard"), {"scalars": 0}, purge_orphaned_data=False).Reload()
        record["curves"] = {tag: [(point.step, point.value) for point in events.Scalars(tag)]
                            for tag in sorted(events.Tags()["scalars"])}
    lines = []
    for log in sorted(out.glob("log.txt*"), key=lambda path: path.name == "log.txt"):
        text, info = log.read_text(), False
        for line in text.splitlines():
            for place, word in places.items():
                line = line.replace(place, word)
            info = (info or line.startswith("** System info")) and not line.startswith("Engine:")
            if info or line.startswith(("Engine:", "This run's process")):
                continue
            line = re.sub(r"time \d+\.\d+ \(\d+\.\d+\) data \d+\.\d+ \(\d+\.\d+\)", "time data", line)
            line = re.sub(r"eta \d+:\d+:\d+", "eta", line)
            line = re.sub(r"Elapsed: .*", "Elapsed", line)
            line = re.sub(r"run that died \(.*\)", "run that died (OWNER)", line)
            lines.append(re.sub(r"\b\d{9,}\b", "N", line))
    record["log"] = lines
    return record


def commands(tree):
    """--help of every command, and what scripts would do."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHON": sys.executable}
    found = {}
    for script in sorted(tree.glob("scripts/*/*.sh")):
        name = str(script.relative_to(tree))
        words = ["shapes", "1"]
        done = subprocess.run(["bash", name, *words, "--dry-run"], cwd=tree, env=env, capture_output=True, text=True)
        found[name] = [done.returncode, done.stdout.replace(str(tree), "TREE"), done.stderr.replace(str(tree), "TREE")]
    for words in (["P2C", "all"], ["MaPLe", "base2new"], ["P2C", "base2new", "shapes"]):
        done = subprocess.run(["bash", "scripts/reproduce.sh", *words, "--dry-run"], cwd=tree, env=env, capture_output=True,
                              text=True)
        found["reproduce " + " ".join(words)] = [done.returncode, done.stdout.replace(str(tree), "TREE"),
                                                 done.stderr.replace(str(tree), "TREE")]
    helps = [["train.py"], ["parse_test_res.py"], ["scripts/pretrain_tiny.py"], ["scripts/reproduce.py"]]
    for words in helps:
        done = subprocess.run([sys.executable, *words, "--help"], cwd=tree, env=env, capture_output=True, text=True)
        found["help " + " ".join(words)] = [done.returncode, done.stdout, done.stderr]
    for command in ("config", "convert", "data", "doctor", "interpret", "predict", "study", "verify_run"):
        words = ["-m", f"p2c.{command}"]
        if not (tree / "p2c" / f"{command}.py").exists() or (tree / "p2c/cli").exists():
            words = ["-m", "p2c", command]
        done = subprocess.run([sys.executable, *words, "--help"], cwd=tree, env=env, capture_output=True, text=True)
        found[f"help {command}"] = [done.returncode, done.stdout.replace("python -m p2c ", "python -m p2c."), done.stderr]
    return found


def record(tree, only, jobs):
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "golden_plugin.py").write_text(PLUGIN)
        (work / "small-quick.json").write_text(json.dumps(SMALL))
        data = Path(os.environ.get("GOLDEN_DATA", work / "data"))
        starters = []
        for index in range(jobs):
            (work / f"started{index}").mkdir()
            starters.append(Starter(work / f"started{index}"))
        first, *rest = list(cases(only))
        found = {first[0]: run(starters[0], tree, work, data, *first)}  # makes the data
        free = list(starters)

        def task(case):
            starter = free.pop()
            try:
                return case[0], run(starter, tree, work, data, *case)
            finally:
                free.append(starter)

        with ThreadPoolExecutor(jobs) as pool:
            found |= dict(pool.map(task, rest))
        for starter in starters:
            starter.close()
    return found


def compare(old, new, path=""):
    """Print where two records differ; the number of differences."""
    if isinstance(old, dict) and isinstance(new, dict):
        faults = 0
        for key in old | new:
            if key not in old or key not in new:
                print(f"{path}/{key}: only in the {'new' if key in new else 'old'} record")
                faults += 1
            else:
                faults += compare(old[key], new[key], f"{path}/{key}")
        return faults
    if old == new:
        return 0
    if path.endswith("/log") and sorted(old) == sorted(new):
        return 0
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(line, str) for line in old + new):
        lost, added = [line for line in old if line not in new], [line for line in new if line not in old]
        print(f"{path}: lost {lost[:4]}, added {added[:4]}")
    else:
        print(f"{path}: {str(old)[:300]!r} -> {str(new)[:300]!r}")
    return 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs=2, type=Path)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if args.compare:
        old, new = (json.loads(path.read_text()) for path in args.paths)
        old = {"runs": {key: value for key, value in old["runs"].items() if key in new["runs"]},
               "commands": old["commands"]}
        faults = compare(old, new)
        print(f"{len(new['runs'])} runs compared; {faults} differences")
        return 1 if faults else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    tree = args.paths[0].resolve()
    found = {"runs": record(tree, args.only, args.jobs), "commands": commands(tree)}
    args.paths[1].write_text(json.dumps(found, indent=1))
    failed = [name for name, run in found["runs"].items() if run["stderr"]]
    print(f"{len(found['runs'])} runs recorded, {len(failed)} failed: {failed[:5]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
