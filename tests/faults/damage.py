"""Truncates files and flips bytes in them: the commands that read them give the right numbers, or one line that says
which file is damaged; never a traceback, never other numbers."""
import csv
import json
import random
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import data_trees
import torch
from clip_files import make_pets
from outcomes import assert_equal, outcome

from faults import processes
from faults.plugin import KILL, STEP, Fault
from p2c.clip.loading import load_backbone
from p2c.engine.results import read_results

SETTINGS = ("OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_STEPS", "3", "TRAIN.CHECKPOINT_FREQ", "1", "TEST.FINAL_MODEL",
            "best_val", "DATASET.NUM_SHOTS", "3")
LEARNER = "MultiModalPromptLearner"
TIMES = 4  # damages of each kind of file, half of them truncations
RIGHT, WARNED, REFUSED = "right", "right with a warning", "refused"
POINTS = "right, but for lost points of curves"  # a killed run leaves such files too: only what follows is drawn again
UNSEEN, BROKEN = "other pixels", "BROKEN"
KEY = re.compile(r"\b[A-Z]+(\.[A-Z0-9_]+)+\b|the first that differs, \d+, was ")  # or the class
WARNING = re.compile("trying an older one|is damaged|is not used")


class Case(NamedTuple):
    """A kind of file and a command that reads it.

    Attributes:
        file: pattern, below the scene's place.
        scene: which command, and where; see `Scenes`.
        lost: files that are deleted first, so that the damaged one is needed.
        unseen: nothing can tell that it is damaged, as an image has no checksum.
        cut: it is only truncated, as JSON has no checksum.
    """

    name: str
    file: str
    scene: str
    lost: str = ""
    unseen: bool = False
    cut: bool = False


CASES = (
    Case("position, resumed from", f"out/{LEARNER}/resume.pth.tar", "half"),
    Case("checkpoint, resumed from", f"out/{LEARNER}/model.pth.tar-1", "half", lost=f"out/{LEARNER}/resume.pth.tar"),
    Case("pointer, resumed from", f"out/{LEARNER}/checkpoint", "half", lost=f"out/{LEARNER}/resume.pth.tar"),
    Case("best checkpoint, deployed", f"out/{LEARNER}/model-best.pth.tar", "half"),
    Case("results.json, resumed from", "out/results.json", "half", cut=True),
    Case("curves, resumed from", "out/tensorboard/*", "half"),
    Case("owner of the lock", "out/run.owner", "half"),
    Case("split JSON", "data/oxford_pets/split_zhou_OxfordPets.json", "half"),
    Case("image", "data/oxford_pets/images/*_train_*.png", "half", unseen=True),
    Case("YAML", "config.yaml", "half"),
    Case("CLIP weights", "clip.pt", "half"),
    Case("CSV split", "data/split.csv", "folder"),
    Case("class names of a folder", "data/classnames.txt", "folder"),
    Case("class names of ImageNet", "data/imagenet/classnames.txt", "imagenet"),
    Case("checkpoint, verified", f"out/{LEARNER}/model-best.pth.tar", "verify_run"),
    Case("results.json, verified", "out/results.json", "verify_run", cut=True),
    Case("checkpoint, predicted with", f"out/{LEARNER}/model-best.pth.tar", "predict"),
    Case("results.json, predicted with", "out/results.json", "predict", cut=True),
    Case("checkpoint, converted", f"out/{LEARNER}/model-best.pth.tar", "convert"),
    Case("checkpoint, tested", f"out/{LEARNER}/model-best.pth.tar", "test"),
    Case("pointer, tested", f"out/{LEARNER}/checkpoint", "test", lost=f"out/{LEARNER}/model-best.pth.tar"),
)


def main(seed: int, quick: bool) -> bool:
    print(f"damage: seed {seed}")
    processes.warm()
    total, faults = Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        scenes = Scenes(Path(scratch))
        for case in random.Random(f"{seed}.cases").sample(CASES[:8], 2) if quick else CASES:
            rng = random.Random(f"{seed}.{case.name}")
            counts = Counter()
            for number in range(2 if quick else TIMES):
                what, kind, fault = scenes.damage(rng, case, case.cut or number % 2 == 0)
                counts[kind] += 1
                if fault:
                    faults.append(f"{case.name}, {what}: {fault}")
            print(f"  {case.name}: {said(counts)}", flush=True)
            total += counts
    for fault in faults:
        print(f"  FAULT: {fault}")
    print(f"damage: {total.total()} damages ({said(total)}); "
          f"{'all held' if not faults else f'{len(faults)} DID NOT HOLD'}")
    return not faults


def said(counts: Counter) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def spoil(rng: random.Random, path: Path, truncate: bool) -> str:
    """Damage a file at places that are drawn; what was done, in words."""
    content = bytearray(path.read_bytes())
    if truncate:
        size = rng.randrange(len(content))
        path.write_bytes(content[:size])
        return f"{path.name} cut to {size} of {len(content)} bytes"
    places = sorted(rng.randrange(len(content)) for _ in range(rng.randint(1, 3)))
    for place in places:
        content[place] ^= rng.randint(1, 255)
    path.write_bytes(content)
    return f"{path.name} of {len(content)} bytes changed at {', '.join(map(str, places))}"


class Scenes:
    """Copies of folders in which a command is due, all at the same place, so that the paths in them hold.

    "half": a training that was killed in its second epoch; "folder" and "imagenet": likewise on other data; the
    commands that take a run have a finished one.
    """

    def __init__(self, root: Path):
        self.place, self.templates = root / "place", root / "templates"
        self.results: dict[str, object] = {}
        self.commands = {
            "half": self.training(),
            "folder": self.training("DATASET.FOLDER.SPLIT", "split.csv", dataset="folder"),
            "imagenet": self.training("TEST.FINAL_MODEL", "last_step", dataset="imagenet"),  # without validation images
            "verify_run": ["verify_run", str(self.place / "out")],
            "predict": ["predict", str(self.place / "out"), str(self.place / "data/oxford_pets/images"), "--csv",
                        str(self.place / "made/predictions.csv")],
            "convert": ["convert", str(self.place / "out"), str(self.place / "made")],
            "test": self.training("MODEL.BACKBONE.WEIGHTS", str(self.place / "clip.pt"), out="made",
                                  options=("--eval-only", "--model-dir", str(self.place / "out"))),
        }

    def training(self, *pairs: str, out: str = "out", dataset: str = "oxford_pets", options: tuple[str, ...] = ()) \
            -> list[str]:
        return processes.training(
            "P2C", self.place / "data", self.place / out, *SETTINGS, "MODEL.BACKBONE.WEIGHTS",
            str(self.place / "clip.pt"), *pairs, dataset=dataset,
            options=("--config-file", str(self.place / "config.yaml"), *options))

    def template(self, scene: str) -> Path:
        """The folder to copy for a scene, made when it is first needed."""
        killed = scene in ("half", "folder", "imagenet")
        folder = self.templates / (scene if killed else "done")
        if not folder.exists():
            if killed:
                self.start(scene)
                fault = Fault(KILL, STEP, 10, True, 0.0, str(self.place / "journal"))
                assert processes.run(self.commands[scene], fault.environment()).killed
            else:
                self.copy("half")
                ended = processes.run(self.commands["half"])
                assert ended.status == 0, ended
            shutil.copytree(self.place, folder)
        return folder

    def start(self, scene: str) -> None:
        """Make what a training needs, at the place."""
        shutil.rmtree(self.place, ignore_errors=True)
        data = self.place / "data"
        make_pets(data)
        if scene == "folder":
            write_csv(data)
        if scene == "imagenet":
            data_trees.write_imagenet(data)
        shutil.copyfile(processes.ROOT / "configs/trainers/P2C/tiny_shapes.yaml", self.place / "config.yaml")
        ended = processes.run(lambda: torch.save(load_backbone("tiny-shapes", "random").model.state_dict(),
                                                 self.place / "clip.pt"))
        assert ended.status == 0, ended.err

    def copy(self, scene: str) -> None:
        template = self.template(scene)
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(template, self.place)

    def result(self, scene: str) -> object:
        """What the command of a scene gives where nothing is damaged."""
        if scene not in self.results:
            self.copy(scene)
            ended = processes.run(self.commands[scene])
            assert ended.status == 0, ended
            self.results[scene] = self.look(scene, ended)
        return self.results[scene]

    def look(self, scene: str, ended: processes.Ended) -> object:
        """What a command that succeeded made."""
        made = self.place / "made"
        if scene == "verify_run":
            return ended.out
        if scene == "predict":
            return (made / "predictions.csv").read_text()
        if scene == "convert":
            return {path.name: torch.load(path) for path in made.glob("*/model*")}
        return read_results(str(made))["metrics"] if scene == "test" else outcome(self.place / "out")

    def damage(self, rng: random.Random, case: Case, truncate: bool) -> tuple[str, str, str]:
        """Damage a file and run the command: what was done, what came of it, and what is not as it should be."""
        expected = self.result(case.scene)
        self.copy(case.scene)
        if case.lost:
            (self.place / case.lost).unlink()
        path = rng.choice(sorted(self.place.glob(case.file)))
        what = spoil(rng, path, truncate)
        ended = processes.run(self.commands[case.scene])
        if ended.fault:
            return what, BROKEN, ended.fault
        if ended.status:
            named = path.name in ended.err or str(path.parent) in ended.err or KEY.search(ended.err)
            return what, REFUSED, "" if named else f"the file is not named: {ended.err.strip()}"
        warned = WARNING.search(ended.out + ended.err)
        try:
            found = self.look(case.scene, ended)
        except Exception as error:
            return what, BROKEN, f"what it left cannot be read: {error}"
        try:
            assert_equal(found, expected)
        except AssertionError as difference:
            if path.parent.name == "tensorboard" and only_points_are_lost(found, expected):
                return what, POINTS, ""
            if case.unseen:
                return what, UNSEEN, ""
            return what, BROKEN, f"other numbers: {str(difference)[:300]}"
        return what, WARNED if warned else RIGHT, ""


def write_csv(data: Path) -> None:
    """The pets as a folder of one's own images."""
    split = json.loads((data / "oxford_pets/split_zhou_OxfordPets.json").read_text())
    rows = [(f"oxford_pets/images/{path}", name.replace(" ", "_"), part)
            for part, items in split.items() for path, _, name in items]
    with open(data / "split.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "class", "split"), *rows])
    names = sorted({name for _, name, _ in rows})
    (data / "classnames.txt").write_text("".join(f"{name} a {name}\n" for name in names))


def only_points_are_lost(found: dict, expected: dict) -> bool:
    """Whether two outcomes differ in nothing but points of curves that the first lacks."""
    def rest(points: list, kept: list) -> bool:
        left = iter(points)
        return all(point in left for point in kept)

    assert_equal({**found, "curves": None}, {**expected, "curves": None})
    return all(rest(expected["curves"].get(tag, []), points) for tag, points in found["curves"].items())
