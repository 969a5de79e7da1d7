"""The sources of each dataset, and how the folders of its archives map to the dataset's folders.

Facts stated by the classes in datasets/ (folder, split file, its hash, counts) are not repeated here. Sizes and hashes
are those of torchvision and TensorFlow Datasets; MD5 where no SHA-256 is known.
"""
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.imagenet import ARCHIVE_META, load_meta_file, parse_devkit_archive

from p2c.download.fetch import InvalidFile, Remote

SPLITS = ("https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/"
          "ac9077ee4e422f768c9b9109551468605e33ec9a/splits/")  # copies of the nine split files
MIRROR = "https://huggingface.co/zhengli97/prompt_learning_dataset/resolve/ceb3112337fb6e1bf71534e355ca5569b63f19a6/"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
STANFORD = "http://ai.stanford.edu/~jkrause/car196/"
BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks/"


@dataclass(frozen=True)
class Archive(Remote):
    """An archive, and how it is unpacked into a dataset's folder.

    Args:
        layout: pairs (path in the archive, with "." for the whole of it; path in the dataset's folder), images last.
        inner: pattern of the members that are archives themselves.
        devkit: the file, which the user must provide, by which `sort_validation_images` sorts the images.
    """

    layout: tuple[tuple[str, str], ...] = ()
    inner: str = ""
    devkit: Remote | None = None

    @property
    def targets(self) -> list[str]:
        """The parts that the archive provides, as paths in the dataset's folder."""
        return [target for _, target in self.layout]


@dataclass(frozen=True)
class Source:
    """The sources of a dataset.

    Args:
        parts: for each part the archives that provide it; the first that is available is used.
        mirror: a third party's archive of all parts and the split, for --mirror; its inner layout is not certain.
        note: a remark for the user, such as that a server is down.
        by_hand: other addresses, for a manual download only.
    """

    parts: tuple[tuple[Archive, ...], ...]
    mirror: Remote | None = None
    note: str = ""
    by_hand: tuple[str, ...] = ()

    @property
    def targets(self) -> list[str]:
        """All parts, as paths in the dataset's folder."""
        return [target for archives in self.parts for target in archives[0].targets]


def sort_validation_images(folder: Path, devkit: Path) -> None:
    """Put ImageNet's validation images, numbered in the devkit's order, into folders by WordNet id."""
    scratch = folder.parent
    parse_devkit_archive(scratch, file=str(devkit.resolve()))
    wnids = load_meta_file(scratch)[1]
    images = sorted(path for path in folder.iterdir() if path.is_file())
    if len(images) != len(wnids):
        raise InvalidFile(f"it holds {len(images)} images, but {devkit.name} has labels for {len(wnids)}")
    for image, wnid in zip(images, wnids, strict=True):
        (folder / wnid).mkdir(exist_ok=True)
        image.rename(folder / wnid / image.name)


def _imagenet(part: str, **options) -> Archive:
    name, md5 = ARCHIVE_META[part]
    return Archive(name, digest=f"md5:{md5}", **options)


def _mirror(name: str, about: int | None = None) -> Remote:
    return Remote(name, (MIRROR + name,), about=about)


def _source(*archives: Archive, mirror: Remote, note: str = "", by_hand: tuple[str, ...] = ()) -> Source:
    """Return the sources of a dataset that is a single part."""
    return Source((archives,), mirror, note, by_hand)


_AIRCRAFT = tuple((f"fgvc-aircraft-2013b/data/{name}", name) for name in (
    "variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt", "images"))

SOURCES = {
    "imagenet": Source(
        parts=(
            (_imagenet("train", about=147_900_000_000, layout=((".", "images/train"),), inner="n*.tar"),),
            (_imagenet("val", about=6_700_000_000, layout=((".", "images/val"),), devkit=_imagenet("devkit")),),
        ),
        note="manual download only: image-net.org requires registration; its archives are then unpacked",
        by_hand=("https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",),
    ),
    "caltech101": _source(
        Archive("caltech-101.zip", ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
                about=137_000_000, digest="md5:3138e1922a9193bfa496528edbbc45d0",
                inner="caltech-101/101_ObjectCategories.tar.gz",
                layout=(("caltech-101/101_ObjectCategories/101_ObjectCategories", "101_ObjectCategories"),)),
        Archive("101_ObjectCategories.tar.gz", ("drive:137RyRjvTBkBiIfeYBNZBtViDHQ6_Ewsp",), size=131_740_031,
                digest="sha256:af6ece2f339791ca20f855943d8b55dd60892c0a25105fcd631ee3d6430f9926",
                layout=(("101_ObjectCategories", "101_ObjectCategories"),)),
        mirror=_mirror("caltech-101.zip"),
    ),
    "oxford_pets": _source(
        Archive("images.tar.gz", (f"{OXFORD}pets/data/images.tar.gz",
                                  "https://thor.robots.ox.ac.uk/pets/images.tar.gz"), size=791_918_971,
                digest="sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
                layout=(("images", "images"),)),
        mirror=_mirror("oxford_pets.zip"),
    ),
    "stanford_cars": Source(
        parts=(
            (Archive("cars_train.tgz", (f"{STANFORD}cars_train.tgz",), size=979_269_282,
                     digest="sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                     layout=(("cars_train", "cars_train"),)),),
            (Archive("cars_test.tgz", (f"{STANFORD}cars_test.tgz",), size=977_350_468,
                     digest="sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                     layout=(("cars_test", "cars_test"),)),),
        ),
        mirror=_mirror("stanford_cars.zip", 1_959_002_685),
        note="its server has answered 404 since May 2023; try --mirror",
        by_hand=("https://www.kaggle.com/datasets/rickyyyyyyy/torchvision-stanford-cars",
                 "https://drive.google.com/file/d/150nwNkg7qXh28yabiqNAOfBMMll7ALlu (inner folders unknown)"),
    ),
    "oxford_flowers": _source(
        Archive("102flowers.tgz", (f"{OXFORD}flowers/102/102flowers.tgz",), size=344_862_509,
                digest="sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
                layout=(("jpg", "jpg"),)),
        mirror=_mirror("oxford_flowers.zip"),
    ),
    "food101": _source(
        Archive("food-101.tar.gz", ("https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                                    "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                                    "https://huggingface.co/datasets/ethz/food101/resolve/main/food-101.tar.gz"),
                size=4_996_278_331,
                digest="sha256:d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
                layout=(("food-101/images", "images"),)),
        mirror=_mirror("food101.zip"),
    ),
    "fgvc_aircraft": _source(
        Archive("fgvc-aircraft-2013b.tar.gz", (f"{OXFORD}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
                about=2_750_000_000, digest="md5:d4acdd33327262359767eeaa97a4f732", layout=_AIRCRAFT),
        # The same archive as some browsers save it: decompressed.
        Archive("fgvc-aircraft-2013b.tar.gz", size=2_770_575_360, layout=_AIRCRAFT,
                digest="sha256:d5f68b1b81d6d7831eb9d5c5517074176b5dfbce6bcb43dc14ed1c66a87b8d75"),
        mirror=_mirror("fgvc_aircraft.zip"),
    ),
    "sun397": _source(
        Archive("SUN397.tar.gz", ("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",),
                size=39_077_296_924,
                digest="sha256:f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
                layout=(("SUN397", "SUN397"),)),
        mirror=_mirror("sun397.zip", 39_182_693_483),
        note="its servers have answered 404 since September 2025; try --mirror",
        by_hand=("https://opendatalab.com/OpenDataLab/SUN397 (needs an account)",),
    ),
    "dtd": _source(
        Archive("dtd-r1.0.1.tar.gz", (f"{OXFORD}dtd/download/dtd-r1.0.1.tar.gz",), size=625_239_812,
                digest="sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
                layout=(("dtd/images", "images"),)),
        mirror=_mirror("dtd.zip"),
    ),
    "eurosat": _source(
        Archive("EuroSAT.zip", ("https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",), size=94_280_567,
                digest="sha256:8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
                layout=(("2750", "2750"),)),
        Archive("EuroSAT_RGB.zip", ("https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",),
                about=94_000_000, layout=(("EuroSAT_RGB", "2750"),)),
        mirror=_mirror("eurosat.zip"),
    ),
    "ucf101": _source(
        Archive("UCF-101-midframes.zip", ("drive:10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",), about=140_000_000,
                layout=(("UCF-101-midframes", "UCF-101-midframes"),)),
        mirror=_mirror("ucf101.zip", 140_164_538),
    ),
    "imagenetv2": _source(
        Archive("imagenetv2-matched-frequency.tar.gz",
                ("https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
                 "imagenetv2-matched-frequency.tar.gz",), about=1_253_959_680,
                layout=(("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency-format-val"),)),
        mirror=_mirror("imagenetv2.zip"),
    ),
    "imagenet_sketch": _source(
        Archive("ImageNet-Sketch.zip",
                ("drive:1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA",
                 "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip"),
                about=7_800_000_000, layout=(("sketch", "images"),)),
        mirror=_mirror("imagenet-sketch.zip"),
        by_hand=("https://www.kaggle.com/datasets/wanghaohan/imagenetsketch",),
    ),
    "imagenet_a": _source(
        Archive("imagenet-a.tar", (f"{BERKELEY}imagenet-a.tar",), size=687_552_512,
                digest="sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
                layout=(("imagenet-a", "imagenet-a"),)),
        mirror=_mirror("imagenet-adversarial.zip"),
    ),
    "imagenet_r": _source(
        Archive("imagenet-r.tar", (f"{BERKELEY}imagenet-r.tar",), size=2_191_079_936,
                digest="sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
                layout=(("imagenet-r", "imagenet-r"),)),
        mirror=_mirror("imagenet-rendition.zip"),
    ),
}
