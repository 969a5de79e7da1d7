"""The user's own images as a dataset, without writing a class: DATASET.ROOT is the folder itself.

The first layout that applies is used:

    DATASET.FOLDER.SPLIT names a file in it     a split JSON of CoOp's form, or a CSV with the columns path, class and,
                                                if the split is given, split (train, val or test)
    train/CLASS/*.jpg, test/CLASS/*.jpg         val/CLASS/*.jpg is optional
    CLASS/*.jpg                                 divided 50 : 20 : 30 within each class; the split is saved in the
                                                folder as split_seed1.json and used from then on

Labels number the sorted class folders (or classes of the CSV). Class names are the folders' names, or those in
classnames.txt: lines "folder name", with a tab between the two if the folder's name contains spaces.
"""
import csv
import io
from pathlib import Path

from yacs.config import CfgNode

from p2c.datasets.base import FewShotDataset
from p2c.datasets.splits import PARTS, Item, Split, check_items, divide, read_names, read_split, read_text
from p2c.datasets.trees import check_images_exist, list_classes
from p2c.engine.files import write_json
from p2c.framework import DATASET_REGISTRY
from p2c.utils.logs import get_logger

log = get_logger(__name__)

SPLIT_SEED = 1  # of splits made here; independent of the run's seed, so that no training image becomes a test image
MADE_SPLIT = f"split_seed{SPLIT_SEED}.json"
CLASSNAMES = "classnames.txt"
CORRECT = "correct the file"


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

    def read(self) -> Split:
        """Read the split by the first layout that applies, with the class names of the names file."""
        if not self.dataset_dir.is_dir():
            raise FileNotFoundError(f"No folder of images at {self.dataset_dir}; give its path as folder:PATH to a "
                                    "script, or as --root to train.py")
        if self.split:
            split = self.read_file(self.dataset_dir / self.split)
        elif any((self.dataset_dir / part).is_dir() for part in ("train", "test")):
            split = self.read_parts()
        else:
            split = self.read_classes()
        return self.rename(split)

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

    def read_parts(self) -> Split:
        """Read the split from the folders train/, test/ and, if present, val/, which have the same class folders."""
        parts = [part for part in PARTS if part != "val" or (self.dataset_dir / part).is_dir()]
        listings = {part: list_classes(self.dataset_dir / part, "Your images") for part in parts}
        labels = {name: label for label, name in enumerate(listings["train"])}
        split = Split([], [], [])
        for part, listing in listings.items():
            # Test needs all classes of the training; validation may lack some.
            odd = listing.keys() ^ labels.keys() if part == "test" else listing.keys() - labels.keys()
            if odd:
                raise ValueError(f"{self.dataset_dir}: the class folders {sorted(odd)[:5]} are not in both train and "
                                 f"{part}; training and test need the same classes")
            getattr(split, part).extend(Item(f"{part}/{name}/{image}", labels[name], name)
                                        for name, images in listing.items() for image in images)
        check_items(split, self.dataset_dir, self.dataset_dir, "correct the folders")
        return split

    def read_classes(self) -> Split:
        """Read the split that was made from the class folders before, or make a new one."""
        path = self.dataset_dir / MADE_SPLIT
        listing = list_classes(self.dataset_dir, "Your images")
        total = sum(map(len, listing.values()))
        if path.is_file():
            split = self.read_file(path)
            if len(split.paths) != total:
                log.warning(f"{path} divides {len(split.paths)} images, but the folders hold {total}; delete that file "
                            "to divide all of them again")
            return split
        items = [Item(f"{name}/{image}", label, name) for label, (name, images) in enumerate(listing.items())
                 for image in images]
        split = divide(items, SPLIT_SEED, self.dataset_dir)
        try:
            write_json(split._asdict(), path)
        except OSError as error:
            raise ValueError(f"{self.dataset_dir} has no split yet and none can be written to {path} ({error}); make "
                             "the folder writable once, or give a split file or train/ and test/ folders") from error
        counts = " : ".join(str(len(part)) for part in split)
        log.info(f"Saved split to {path}: {total} images, {counts} for training, validation and test")
        return self.read_file(path)

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
                             "file and the images' classes")
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
