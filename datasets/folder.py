"""The user's own images as a dataset, without writing a class: DATASET.ROOT is the folder itself.

The first layout that applies is used:

    DATASET.FOLDER.SPLIT names a file in it     a split JSON of CoOp's form, or a CSV with the columns path, class and,
                                                if the split is given, split (train, val or test)
    train/CLASS/*.jpg, test/CLASS/*.jpg         val/CLASS/*.jpg is optional; SPELLINGS lists other names of the three
    CLASS/*.jpg                                 divided 50 : 20 : 30 within each class; the split is saved in the
                                                folder as split_seed1.json and used from then on

Images in the folders of a class folder belong to the class. Labels number the sorted class folders (or classes of the
CSV). Class names are the folders' names, or those in classnames.txt: lines "folder name", with a tab between the two if
the folder's name contains spaces.
"""
import csv
import io
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from yacs.config import CfgNode

from p2c.datasets.base import FewShotDataset
from p2c.datasets.splits import PARTS, Item, Split, check_items, divide, read_names, read_split, read_text
from p2c.datasets.trees import (
    JUNK,
    check_images_exist,
    describe,
    files_below,
    images_below,
    is_image,
    list_classes,
    list_deep,
    list_images,
    note_on_forms,
)
from p2c.engine.files import write_json
from p2c.framework import DATASET_REGISTRY
from p2c.prompts.context import find_same
from p2c.utils.logs import get_logger

log = get_logger(__name__)

SPLIT_SEED = 1  # of splits made here; independent of the run's seed, so that no training image becomes a test image
MADE_SPLIT = f"split_seed{SPLIT_SEED}.json"
CLASSNAMES = "classnames.txt"
CORRECT = "correct the file"
SPELLINGS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


@DATASET_REGISTRY.register()
class Folder(FewShotDataset):
    """A folder of the user's own images.

    Raises:
        FileNotFoundError: there is no such folder, or images are missing.
        ValueError: an unusable folder, or settings that do not fit it.
    """

    folder, images = "", ""

    def __init__(self, cfg: CfgNode):
        settings = cfg.DATASET.FOLDER
        self.template, self.split, self.names_file = settings.TEMPLATE, settings.SPLIT, settings.CLASSNAMES
        super().__init__(cfg)

    @classmethod
    def verification(cls, cfg: CfgNode) -> str:
        path = os.path.join(cfg.DATASET.ROOT, cfg.DATASET.FOLDER.SPLIT).rstrip("/")
        return f"python -m p2c data verify --full {shlex.quote(f'folder:{path}')}"

    def read(self) -> Split:
        """Read the split by the first layout that applies, with the class names of the names file."""
        if not self.dataset_dir.is_dir():
            raise FileNotFoundError(f"No folder of images at {self.dataset_dir}; give its path as folder:PATH to a "
                                    "script, or as --root to train.py")
        if self.split:
            split = self.read_file(self.dataset_dir / self.split)
        elif parts := self.find_parts():
            split = self.read_parts(parts)
        else:
            split = self.read_classes()
        split = self.rename(split)
        names = [name for _, name in sorted({(item.label, item.classname) for item in split.train})]
        if same := find_same(names):
            first, second = same
            raise ValueError(f"{self.dataset_dir}: the class names {names[first]!r} and {names[second]!r} are the same "
                             f"to CLIP; make them one class, or give them other names in {CLASSNAMES}")
        return split

    def read_file(self, path: Path) -> Split:
        """Read a split from a JSON or CSV file and check that all its images exist."""
        if not path.is_file():
            raise FileNotFoundError(f"No split file {path} (DATASET.FOLDER.SPLIT)")
        if path.suffix == ".json":
            split = read_split(path, self.dataset_dir, CORRECT)
        elif path.suffix == ".csv":
            split = read_csv(path)
            check_items(split, self.dataset_dir, path, CORRECT)
        else:
            raise ValueError(f"{path} (DATASET.FOLDER.SPLIT) must be a .json or a .csv file")
        check_images_exist(self.dataset_dir, split.paths, f"The split {path}",
                           f"{CORRECT}, or put the images there")
        return split

    def find_parts(self) -> dict[str, str]:
        """Return the folders of the parts by the parts' names; none if the folders are classes.

        A folder that is called like a part is a class if images lie in it, beside other class folders.

        Raises:
            ValueError: two folders for the same part.
        """
        folders = sorted(entry.name for entry in os.scandir(self.dataset_dir) if entry.is_dir())
        parts: dict[str, str] = {}
        for part, spellings in SPELLINGS.items():
            found = [name for name in folders if name.lower() in spellings]
            if len(found) > 1:
                raise ValueError(f"{self.dataset_dir} has the folders {' and '.join(found)} for the {part} images; "
                                 "put these into one")
            if found:
                parts[part] = found[0]
        if parts.keys() <= {"val"}:
            return {}
        both = {name.lower() for name in parts.values()} >= {"train", "test"}
        loose = all(list_images(self.dataset_dir / name) for name in parts.values())
        return {} if loose and not both and self.others(parts) else parts

    def others(self, parts: Mapping[str, str]) -> list[str]:
        """Return the folders beside those of the parts that hold images, sorted."""
        return sorted(entry.name for entry in os.scandir(self.dataset_dir)
                      if entry.is_dir() and entry.name not in (*parts.values(), *JUNK)
                      and not entry.name.startswith(".") and images_below(entry.path))

    def read_parts(self, parts: Mapping[str, str]) -> Split:
        """Read the split from the folders of the parts, which have the same class folders."""
        found = ", ".join(parts.values())
        listings = {}
        for part in PARTS:
            if part in parts:
                listings[part] = self.list_classes(self.dataset_dir / parts[part])
            elif part != "val":
                raise FileNotFoundError(f"{self.dataset_dir} has the folders {found}, but none with the {part} images; "
                                        f"make a folder {part} with the same class folders, or leave only class "
                                        "folders, whose images are divided")
        labels = {name: label for label, name in enumerate(listings["train"])}
        split = Split([], [], [])
        for part, listing in listings.items():
            # Test needs all classes of the training; validation may lack some.
            odd = listing.keys() ^ labels.keys() if part == "test" else listing.keys() - labels.keys()
            if odd:
                raise ValueError(f"{self.dataset_dir}: the class folders {sorted(odd)[:5]} are not in both "
                                 f"{parts['train']} and {parts[part]}{note_on_forms(odd)}; training and test need the "
                                 "same classes")
            getattr(split, part).extend(Item(f"{parts[part]}/{name}/{image}", labels[name], name)
                                        for name, images in listing.items() for image in images)
        if others := self.others(parts):
            log.warning(f"{self.dataset_dir}: the images in {', '.join(others)} are not used, only those in {found}")
        self.check(split)
        return split

    def read_classes(self) -> Split:
        """Read the split that was made from the class folders before, or make a new one."""
        path = self.dataset_dir / MADE_SPLIT
        listing = self.list_classes(self.dataset_dir)
        total = sum(map(len, listing.values()))
        if path.is_file():
            split = self.read_file(path)
            if new := sorted(listing.keys() - {item.path.partition("/")[0] for item in split.train}):
                log.warning(f"The class folders {', '.join(new)} are newer than {path}, so they are not used; delete "
                            "that file to divide all images again")
            elif len(split.paths) != total:
                log.warning(f"{path} divides {len(split.paths)} images, but the folders hold {total}; delete that file "
                            "to divide all of them again")
            return split
        items = [Item(f"{name}/{image}", label, name) for label, (name, images) in enumerate(listing.items())
                 for image in images]
        split = divide(items, SPLIT_SEED, self.dataset_dir)
        self.check(split)
        try:
            write_json(split._asdict(), path)
        except OSError as error:
            raise ValueError(f"{self.dataset_dir} has no split yet and none can be written to {path} ({error}); make "
                             "the folder writable once, or give a split file or train/ and test/ folders") from error
        counts = " : ".join(str(len(part)) for part in split)
        log.info(f"Saved split to {path}: {total} images, {counts} for training, validation and test")
        return self.read_file(path)

    def check(self, split: Split) -> None:
        """Check a split that was read from folders: its images can be named in a file, and exist."""
        check_items(split, self.dataset_dir, self.dataset_dir, "rename the file or folder")
        check_images_exist(self.dataset_dir, split.paths, "Your images", "remove the link, or put the image there")

    def list_classes(self, folder: Path) -> dict[str, list[str]]:
        """Return the images in each class folder and the folders in it; log how many files there are left out."""
        listing = list_classes(folder, "Your images", listed=list_deep)
        others = [path for name in listing for path in files_below(folder / name) if not is_image(path)]
        if others:
            log.warning(f"{folder}: {len(others)} files in the class folders are left out: {describe(others)}")
        if loose := list_images(folder):
            log.warning(f"{folder}: {len(loose)} images beside the class folders are left out, first {loose[0]}")
        return listing

    def rename(self, split: Split) -> Split:
        """Return the split with the class names of the names file, if there is one."""
        path = self.dataset_dir / (self.names_file or CLASSNAMES)
        if not path.is_file():
            if self.names_file:
                raise FileNotFoundError(f"No file of class names {path} (DATASET.FOLDER.CLASSNAMES)")
            return split
        names = read_names(path)
        folders = {item.classname for item in split.train}
        if odd := sorted(folders ^ names.keys()):
            raise ValueError(f"{path} must have one line \"folder name\" per class, but {odd[:5]} are not in both the "
                             f"file and the images' classes{note_on_forms(odd)}")
        return Split(*([item._replace(classname=names[item.classname]) for item in part] for part in split))


def read_csv(path: Path) -> Split:
    """Read the items of a CSV file with the columns path, class and, optionally, split; without it, divide them.

    Raises:
        ValueError: missing columns, a row without a value, or an unknown part.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path)), skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{path} is not a valid CSV file: {error}; {CORRECT}") from error
    columns = set(rows[0]) if rows else set()
    if not {"path", "class"} <= columns:
        raise ValueError(f"{path} needs a first line with the columns path, class and, if you choose the split "
                         "yourself, split (train, val or test), then one line per image; its columns are "
                         f"{', '.join(map(str, columns)) or 'none'}")
    for number, row in enumerate(rows, start=2):
        if not row["path"] or not row["class"]:
            raise ValueError(f"{path}, line {number}: path or class is missing; {CORRECT}")
        if "split" in columns and row["split"] not in PARTS:
            raise ValueError(f"{path}, line {number}: split is {row['split']!r}; choose from {', '.join(PARTS)}")
    labels = {name: label for label, name in enumerate(sorted({row["class"] for row in rows}))}
    items = [(row.get("split"), Item(row["path"], labels[row["class"]], row["class"])) for row in rows]
    if "split" in columns:
        return Split(*([item for chosen, item in items if chosen == part] for part in PARTS))
    return divide([item for _, item in items], SPLIT_SEED, path)
