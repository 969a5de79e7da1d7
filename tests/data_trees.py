"""Makes a miniature of each dataset in CoOp's layout: the folders, files and class names of the real one, tiny images.

`TREES` maps a dataset's name to a function that writes it below a root. The facts are written down here a second time,
from the datasets' documentation, so that a loader is compared with something.
"""
import json

from PIL import Image

SPLITS = {  # name -> (folder, split file, image folder, image path of (label, name, part, index), class names by label)
    "caltech101": ("caltech-101", "split_zhou_Caltech101.json", "101_ObjectCategories",
                   "{name}/image_{index:04d}.jpg", ["face", "leopard", "motorbike", "accordion", "airplane"]),
    "oxford_pets": ("oxford_pets", "split_zhou_OxfordPets.json", "images",
                    "{name}_{index}.jpg", ["abyssinian", "american_bulldog", "bengal", "boxer"]),
    "stanford_cars": ("stanford_cars", "split_zhou_StanfordCars.json", ".", "cars_{side}/{index:05d}.jpg",
                      ["2000 AM General Hummer SUV", "2012 Ram C/V Cargo Van Minivan",
                       "2009 Bugatti Veyron 16.4 Coupe"]),
    "oxford_flowers": ("oxford_flowers", "split_zhou_OxfordFlowers.json", "jpg", "image_{index:05d}.jpg",
                       ["pink primrose", "hard-leaved pocket orchid", "bird of paradise"]),
    "food101": ("food-101", "split_zhou_Food101.json", "images", "{name}/{index}.jpg",
                ["apple_pie", "baby_back_ribs", "baklava"]),
    "sun397": ("sun397", "split_zhou_SUN397.json", "SUN397", "{letter}/{name}/sun_{index}.jpg",
               ["abbey", "airplane_cabin", "indoor apartment_building"]),
    "dtd": ("dtd", "split_zhou_DescribableTextures.json", "images", "{name}/{name}_{index:04d}.jpg",
            ["banded", "blotchy", "polka-dotted"]),
    "eurosat": ("eurosat", "split_zhou_EuroSAT.json", "2750", "Class{label}/Class{label}_{index}.jpg",
                ["Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road"]),
    "ucf101": ("ucf101", "split_zhou_UCF101.json", "UCF-101-midframes", "{name}/v_{index}_g01_c01.jpg",
               ["Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"]),
}
COUNTS = {"train": 3, "val": 2, "test": 2}  # images a class
WNIDS = {"n01440764": "tench", "n03041632": "cleaver", "n03773504": "missile", "n04008634": "missile"}


def save_image(path, colour=(90, 120, 60), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_split_tree(root, name):
    """One of SPLITS; returns its folder."""
    folder, split_file, images, pattern, classes = SPLITS[name]
    split, index = {}, 0
    for part, count in COUNTS.items():
        split[part] = []
        for label, classname in enumerate(classes):
            for _ in range(count):
                index += 1
                path = pattern.format(name=classname.replace(" ", "_"), index=index, label=label,
                                      letter=classname[0].lower(), side="test" if part == "test" else "train")
                save_image(root / folder / images / path)
                split[part].append([path, label, classname])
    (root / folder / split_file).write_text(json.dumps(split, indent=4, separators=(",", ": ")))
    return root / folder


def write_aircraft(root):
    """FGVCAircraft with its four lists: names with spaces, slashes and hyphens."""
    folder, classes = root / "fgvc_aircraft", ["707-320", "F-16A/B", "Cessna 525"]
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(classes) + "\n")
    index = 0
    for part, count in COUNTS.items():
        lines = []
        for classname in classes:
            for _ in range(count):
                index += 1
                save_image(folder / "images" / f"{index:07d}.jpg")
                lines.append(f"{index:07d} {classname}")
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_classnames(folder, wnids=WNIDS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in wnids.items()))


def write_imagenet(root):
    folder = root / "imagenet"
    write_classnames(folder)
    for wnid in WNIDS:
        for index in range(COUNTS["train"]):
            save_image(folder / "images" / "train" / wnid / f"{wnid}_{index}.JPEG")
        for index in range(COUNTS["test"]):
            save_image(folder / "images" / "val" / wnid / f"ILSVRC2012_val_{wnid}{index}.JPEG")
    return folder


def write_variant(folder, images, names, suffix):
    for name in names:
        for index in range(COUNTS["test"]):
            save_image(folder / images / name / f"{index}.{suffix}")
    (folder / images / "README.txt").write_text("not an image\n")
    write_classnames(folder)
    return folder


TREES = {
    **{name: lambda root, name=name: write_split_tree(root, name) for name in SPLITS},
    "fgvc_aircraft": write_aircraft,
    "imagenet": write_imagenet,
    "imagenetv2": lambda root: write_variant(root / "imagenetv2", "imagenetv2-matched-frequency-format-val",
                                             map(str, range(len(WNIDS))), "jpeg"),
    "imagenet_sketch": lambda root: write_variant(root / "imagenet-sketch", "images", WNIDS, "JPEG"),
    "imagenet_a": lambda root: write_variant(root / "imagenet-adversarial", "imagenet-a", list(WNIDS)[1:], "jpg"),
    "imagenet_r": lambda root: write_variant(root / "imagenet-rendition", "imagenet-r", list(WNIDS)[1:], "jpg"),
}
CLASSES = {  # class names in the order of the labels
    **{name: facts[4] for name, facts in SPLITS.items()},
    "fgvc_aircraft": ["707-320", "F-16A/B", "Cessna 525"],
    **{name: list(WNIDS.values()) for name in ("imagenet", "imagenetv2", "imagenet_sketch")},
    **{name: list(WNIDS.values())[1:] for name in ("imagenet_a", "imagenet_r")},
}
