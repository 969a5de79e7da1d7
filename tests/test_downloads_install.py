"""From archives to CoOp's folders: each dataset by a miniature archive with the real one's inner paths, and what users
may have in their folders already."""
import hashlib
import os
import random
import re
import shutil
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torchvision.datasets.imagenet
from data_trees import CLASSES, COUNTS, TREES, WNIDS, save_image, write_split_tree
from download_fixtures import HTML, Drive, files_below, no_drive, start, tar_of, until, zip_of
from messages import naming

from p2c.datasets.base import Sizes
from p2c.datasets.imagenet import ImageNet
from p2c.datasets.trees import images_below
from p2c.download import install as installing
from p2c.download.contents import class_of
from p2c.download.fetch import Remote
from p2c.download.install import install, steps_by_hand
from p2c.download.places import FETCHED, LOCK
from p2c.download.sources import SOURCES, Source
from p2c.download.verify import state_of, verify
from p2c.grid.families import FAMILIES

LABELS = {"ILSVRC2012_val_00000003.JPEG": "n03041632", "ILSVRC2012_val_00000001.JPEG": "n01440764",
          "ILSVRC2012_val_00000002.JPEG": "n03041632"}


def caltech(tree):
    nested = tar_of({**files_below(tree / "101_ObjectCategories", "101_ObjectCategories/"),
                     "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": b"x"})
    return zip_of({"caltech-101/101_ObjectCategories.tar.gz": nested, "caltech-101/Annotations.tar": b"annotations",
                   "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"junk"})


ARCHIVES = {  # name -> archive -> how it is packed from the tree, with the real archive's inner paths
    "caltech101": {"caltech-101.zip": caltech,
                   "101_ObjectCategories.tar.gz":
                       lambda tree: tar_of(files_below(tree / "101_ObjectCategories", "101_ObjectCategories/"))},
    "oxford_pets": {"images.tar.gz": lambda tree: tar_of({
        **files_below(tree / "images", "images/"), "images/Abyssinian_100.mat": b"left over"})},
    "stanford_cars": {f"{folder}.tgz": lambda tree, folder=folder: tar_of(files_below(tree / folder, f"{folder}/"))
                      for folder in ("cars_train", "cars_test")},
    "oxford_flowers": {"102flowers.tgz": lambda tree: tar_of(files_below(tree / "jpg", "jpg/"))},
    "food101": {"food-101.tar.gz": lambda tree: tar_of({
        **files_below(tree / "images", "food-101/images/"), "food-101/meta/classes.txt": b"apple_pie",
        "food-101/README.txt": b"", "food-101/license_agreement.txt": b""})},
    "fgvc_aircraft": {"fgvc-aircraft-2013b.tar.gz": lambda tree: tar_of({
        **files_below(tree, "fgvc-aircraft-2013b/data/"), "fgvc-aircraft-2013b/README": b"",
        "fgvc-aircraft-2013b/evaluation.m": b"", "fgvc-aircraft-2013b/data/families.txt": b""})},
    "sun397": {"SUN397.tar.gz": lambda tree: tar_of({
        **files_below(tree / "SUN397", "SUN397/"), "SUN397/ClassName.txt": b"/a/abbey", "SUN397/README.txt": b""})},
    "dtd": {"dtd-r1.0.1.tar.gz": lambda tree: tar_of({
        **files_below(tree / "images", "dtd/images/"), "dtd/labels/train1.txt": b"", "dtd/imdb/imdb.mat": b"",
        "dtd/images/banded/.directory": b""})},
    "eurosat": {"EuroSAT.zip": lambda tree: zip_of(files_below(tree / "2750", "2750/")),
                "EuroSAT_RGB.zip": lambda tree: zip_of(files_below(tree / "2750", "EuroSAT_RGB/"))},
    "ucf101": {"UCF-101-midframes.zip": lambda tree: zip_of({
        **files_below(tree / "UCF-101-midframes", "UCF-101-midframes/"), "__MACOSX/._UCF-101-midframes": b""})},
    # a plain tar in spite of its name
    "imagenetv2": {"imagenetv2-matched-frequency.tar.gz": lambda tree: tar_of(files_below(tree), "")},
    "imagenet_sketch": {"ImageNet-Sketch.zip": lambda tree: zip_of(files_below(tree / "images", "sketch/"))},
    "imagenet_a": {"imagenet-a.tar": lambda tree: tar_of(files_below(tree / "imagenet-a", "imagenet-a/"), "")},
    "imagenet_r": {"imagenet-r.tar": lambda tree: tar_of(files_below(tree / "imagenet-r", "imagenet-r/"), "")},
}
ONE_EACH = [(name, archive) for name, packers in ARCHIVES.items() if name != "stanford_cars" for archive in packers]


@pytest.fixture(autouse=True)
def shown(caplog):
    caplog.set_level("INFO", "p2c.download")
    return caplog


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """mini(name): a miniature's tree, outside the root; the dataset's class takes its numbers for the published."""
    def make(name):
        kind, classes = class_of(name), len(CLASSES[name])
        tree = TREES[name](tmp_path / "original")
        train, val, test = (classes * COUNTS[part] for part in ("train", "val", "test"))
        if kind.split == "classnames.txt":
            train, val = (train if name == "imagenet" else 0), 0
        monkeypatch.setattr(kind, "sizes", Sizes(classes, train, val, test))
        if kind is not ImageNet:
            monkeypatch.setattr(ImageNet, "sizes", Sizes(len(WNIDS), 0, 0, 0))
        if kind.split_sha256:
            monkeypatch.setattr(kind, "split_sha256", hashlib.sha256((tree / kind.split).read_bytes()).hexdigest())
        return tree
    return make


def known(archive, content, *urls):
    """An archive of the table with a miniature's size, hash and place."""
    return replace(archive, sources=urls, size=len(content) if archive.size else None, about=None,
                   digest=f"md5:{hashlib.md5(content).hexdigest()}" if archive.digest else "")


def serve(server, name, tree, **faults):
    """The dataset's entry with its archives on the server."""
    def put(archive):
        content = ARCHIVES[name][archive.name](tree)
        return known(archive, content, server.put(f"/{archive.name}", content, **faults))

    source = SOURCES[name]
    return replace(source, parts=tuple(tuple(map(put, archives)) for archives in source.parts))


def drive_with(name, tree):
    kind = class_of(name)
    return Drive(**{kind.split_id: (tree / kind.split).read_bytes()}) if kind.split_id else no_drive


def get(name, source, root, tree, **options):
    return install(name, source, root, drive=drive_with(name, tree), **options)


def images_of(folder):
    return {path.removeprefix(f"{folder}/"): open(path, "rb").read() for path in images_below(folder)}


@pytest.mark.parametrize("name", ARCHIVES)
def test_download_lays_a_dataset_out_as_coop_expects(tmp_path, mini, server, name):
    tree, root = mini(name), tmp_path / "data"
    source = serve(server, name, tree)
    assert state_of(name, source, root) == "absent"
    assert get(name, source, root, tree) == []
    folder = root / tree.name
    found = files_below(folder)
    assert files_below(tree).items() <= found.items()
    assert verify(name, source, root, full=True).faults == [] and state_of(name, source, root) == "complete"
    assert not (folder / FETCHED).exists()
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".gz", ".tgz", ".zip", ".tar"))]
    requests = len(server.requests)
    assert install(name, source, root, drive=no_drive) == [] and len(server.requests) == requests  # nothing left to do


@pytest.mark.parametrize("name, archive", ONE_EACH)
@pytest.mark.parametrize("where", ["folder", "root"])
def test_an_archive_that_lies_there_is_used_offline_and_kept(tmp_path, mini, name, archive, where):
    tree, root = mini(name), tmp_path / "data"
    folder = root / tree.name
    folder.mkdir(parents=True)
    path = (folder if where == "folder" else root) / archive
    path.write_bytes(content := ARCHIVES[name][archive](tree))
    if class_of(name).split_id:
        (folder / class_of(name).split).write_bytes((tree / class_of(name).split).read_bytes())
    source = replace(SOURCES[name], parts=(tuple(
        known(each, content) for each in SOURCES[name].parts[0] if each.name == archive),))
    assert install(name, source, root, drive=no_drive) == []
    assert path.exists() and verify(name, source, root).faults == []


# ImageNet

def write_imagenet_archives(folder, monkeypatch):
    """Its three archives as the organisers pack them, and the hashes that go with them; the entry."""
    image = folder / "image.JPEG"
    save_image(image)
    jpeg = image.read_bytes()
    image.unlink()
    wnids = sorted(set(LABELS.values()))
    train = {f"{wnid}.tar": tar_of({f"{wnid}_{index}.JPEG": jpeg for index in range(2)}, "") for wnid in wnids}
    synsets = np.array([(index + 1, wnid, "a, b", "gloss", 0, np.zeros(0), 0, 5) for index, wnid in enumerate(wnids)],
                       dtype=[(key, "O") for key in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children",
                                                     "children", "wordnet_height", "num_train_images")])
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{wnids.index(wnid) + 1}\n" for _, wnid in sorted(LABELS.items()))
    devkit = {"ILSVRC2012_devkit_t12/data/meta.mat": (folder / "meta.mat").read_bytes(),
              "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    (folder / "meta.mat").unlink()
    contents = {"train": tar_of(train, ""), "val": tar_of(dict.fromkeys(LABELS, jpeg), ""), "devkit": tar_of(devkit)}
    meta = torchvision.datasets.imagenet.ARCHIVE_META
    for part, content in contents.items():
        monkeypatch.setitem(meta, part, (meta[part][0], hashlib.md5(content).hexdigest()))
        (folder / meta[part][0]).write_bytes(content)
    monkeypatch.setattr(ImageNet, "sizes", Sizes(2, 4, 0, 3))
    (folder / "classnames.txt").write_text("".join(f"{wnid} name of it\n" for wnid in wnids))
    (train_part,), (val_part,) = SOURCES["imagenet"].parts
    devkit = known(val_part.devkit, contents["devkit"])
    return replace(SOURCES["imagenet"], parts=((known(train_part, contents["train"]),),
                                               (replace(known(val_part, contents["val"]), devkit=devkit),)))


def test_imagenets_own_archives_are_unpacked_and_its_validation_images_sorted(tmp_path, monkeypatch):
    folder = tmp_path / "imagenet"
    folder.mkdir()
    source = write_imagenet_archives(folder, monkeypatch)
    assert install("imagenet", source, tmp_path, drive=no_drive) == []
    assert {f"val/{wnid}/{name}" for name, wnid in LABELS.items()} | {
        f"train/{wnid}/{wnid}_{index}.JPEG" for wnid in LABELS.values() for index in range(2)
    } == {path.removeprefix(f"{folder}/images/") for path in images_below(folder / "images")}
    assert sorted(os.listdir(folder / "images")) == ["train", "val"]
    assert verify("imagenet", source, tmp_path).faults == []
    assert (folder / "ILSVRC2012_img_train.tar").exists()


def test_unsorted_validation_images_are_set_aside_and_a_whole_train_folder_stays(tmp_path, monkeypatch):
    folder = tmp_path / "imagenet"
    folder.mkdir()
    source = write_imagenet_archives(folder, monkeypatch)
    assert install("imagenet", source, tmp_path, drive=no_drive) == []
    before = os.stat(folder / "images/train").st_ino
    for path in images_below(folder / "images/val"):
        os.rename(path, folder / "images/val" / os.path.basename(path))
    for wnid in set(LABELS.values()):
        (folder / "images/val" / wnid).rmdir()
    assert state_of("imagenet", source, tmp_path) == "images missing"
    assert install("imagenet", source, tmp_path, drive=no_drive) == []
    assert os.stat(folder / "images/train").st_ino == before
    assert len(os.listdir(folder / "images/val.old-1")) == len(LABELS)


def test_imagenet_without_its_archives_fails_with_the_steps(tmp_path, monkeypatch):
    folder = tmp_path / "imagenet"
    folder.mkdir()
    source = write_imagenet_archives(folder, monkeypatch)
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    (folder / "ILSVRC2012_img_train.tar").unlink()
    train, val = install("imagenet", source, tmp_path, drive=no_drive)
    assert "ILSVRC2012_img_train.tar is missing" in train and "ILSVRC2012_devkit_t12.tar.gz is needed" in val
    assert any("image-net.org" in line for line in steps_by_hand("imagenet", source, tmp_path))
    assert not (folder / "images").exists()


# ImageNet's variants

@pytest.mark.parametrize("shared", [True, False])
def test_variants_take_imagenets_class_names_and_fetch_their_own_only_without(tmp_path, mini, server, shared):
    tree, root = mini("imagenet_a"), tmp_path / "data"
    if shared:
        (root / "imagenet").mkdir(parents=True)
        (root / "imagenet/classnames.txt").write_bytes((tree / "classnames.txt").read_bytes())
    assert get("imagenet_a", serve(server, "imagenet_a", tree), root, tree) == []
    assert (root / "imagenet-adversarial/classnames.txt").exists() is not shared


@pytest.mark.parametrize("rename, count, reason", [
    (lambda label: f"n0000000{label}", 2, "n00000000, .*another version of ImageNetV2"),
    (str, 3, "holds 12 images in 4 class folders, expected 8 in 4"),
    (lambda label: str(label + 1), 2, "folders 0 to 3, .*another version of ImageNetV2")])
def test_other_versions_of_imagenetv2_are_refused(tmp_path, mini, server, rename, count, reason):
    tree, root = mini("imagenetv2"), tmp_path / "data"
    images = tree / "imagenetv2-matched-frequency-format-val"
    for label in reversed(range(4)):
        os.rename(images / str(label), images / rename(label))
        for index in range(2, count):
            save_image(images / rename(label) / f"{index}.jpeg")
    fault, = get("imagenetv2", serve(server, "imagenetv2", tree), root, tree)
    assert re.search(reason, fault)
    assert not (root / "imagenetv2" / images.name).exists()


# Splits

def test_a_split_that_drive_refuses_comes_from_the_second_source(tmp_path, mini, server, monkeypatch):
    tree = mini("dtd")
    name = class_of("dtd").split
    url = server.put(f"/splits/{name}", (tree / name).read_bytes())
    monkeypatch.setattr(installing, "SPLITS", url.removesuffix(name))
    assert install("dtd", serve(server, "dtd", tree), tmp_path / "data", drive=Drive()) == []


@pytest.mark.parametrize("content, reason", [
    (HTML, "web page"), (b'{"train": [["a.jpg", 0, "a"], ["b.', "split file"), (b"{}", "split file"),
    (b'{"train": [["/etc/a.jpg", 0, "a"]], "val": [], "test": [["b.jpg", 0, "a"]]}', "/etc/a.jpg"),
    (b'{"train": [["a.jpg", 0, "a"]], "val": [], "test": [["b.jpg", 0, "a"]]}', "[1, 0, 1]"),
])
def test_what_is_no_split_of_the_dataset_is_refused(tmp_path, mini, server, shown, content, reason):
    tree, root = mini("dtd"), tmp_path / "data"
    source = serve(server, "dtd", tree)
    fault, = install("dtd", source, root, drive=Drive(**{class_of("dtd").split_id: content}))
    assert "split_zhou_DescribableTextures.json" in fault and reason in shown.text
    assert state_of("dtd", source, root) == "split missing"
    assert any(class_of("dtd").split_id in line for line in steps_by_hand("dtd", source, root))


def test_a_split_with_another_hash_is_used_and_verification_warns_with_both(tmp_path, mini, server, shown,
                                                                            monkeypatch):
    tree, root = mini("dtd"), tmp_path / "data"
    found = class_of("dtd").split_sha256
    monkeypatch.setattr(class_of("dtd"), "split_sha256", "0" * 64)
    source = serve(server, "dtd", tree)
    assert get("dtd", source, root, tree) == [] and verify("dtd", source, root).faults == []
    assert found in shown.text and "0" * 64 in shown.text


def test_a_users_own_split_stays_where_it_is_usable_and_is_kept_where_not(tmp_path, mini, server):
    tree, root = mini("dtd"), tmp_path / "data"
    own = root / "dtd" / class_of("dtd").split
    own.parent.mkdir(parents=True)
    own.write_bytes((tree / own.name).read_bytes() + b"\n")
    assert install("dtd", serve(server, "dtd", tree), root, drive=no_drive) == []
    assert own.read_bytes().endswith(b"\n")
    own.write_bytes(HTML)
    assert get("dtd", serve(server, "dtd", tree), root, tree) == []
    assert own.with_name(f"{own.name}.old-1").read_bytes() == HTML


# What is in the folder already

def test_images_that_are_there_are_not_fetched(tmp_path, mini, server):
    tree = mini("stanford_cars")
    source = serve(server, "stanford_cars", tree)
    os.rename(tree / "cars_test", tmp_path / "cars_test")
    before = os.stat(tree / "cars_train").st_ino
    assert install("stanford_cars", source, tree.parent, drive=no_drive) == []
    assert [path for path, _ in server.requests] == ["/cars_test.tgz"]
    assert os.stat(tree / "cars_train").st_ino == before


def test_incomplete_images_of_a_user_are_set_aside_and_everything_else_stays(tmp_path, mini, server):
    tree, root = mini("dtd"), tmp_path / "data"
    write_split_tree(root, "dtd")
    lost = next(path for path in images_below(root / "dtd"))
    os.remove(lost)
    (root / "dtd/split_fewshot").mkdir()
    (root / "dtd/split_fewshot/shot_1-seed_1.json").write_text("{}")
    assert install("dtd", serve(server, "dtd", tree), root, drive=no_drive) == []
    assert os.path.exists(lost) and not os.path.exists(lost.replace("images", "images.old-1"))
    assert len(images_of(root / "dtd/images.old-1")) == len(images_of(root / "dtd/images")) - 1
    assert (root / "dtd/split_fewshot/shot_1-seed_1.json").exists()


def test_folders_that_are_links_are_followed(tmp_path, mini, server):
    tree, root = mini("dtd"), tmp_path / "data"
    (tmp_path / "big disk").mkdir()
    root.mkdir()
    (root / "dtd").symlink_to(tmp_path / "big disk")
    assert get("dtd", serve(server, "dtd", tree), root, tree) == []
    assert (tmp_path / "big disk/images").is_dir() and (root / "dtd").is_symlink()


def test_a_folder_that_is_a_dangling_link_is_reported(tmp_path):
    (tmp_path / "dtd").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="link to .*gone"):
        install("dtd", SOURCES["dtd"], tmp_path, drive=no_drive)


def test_an_archive_that_is_another_is_not_used_and_not_overwritten(tmp_path, mini, server):
    tree, root = mini("dtd"), tmp_path / "data"
    own = root / "dtd/dtd-r1.0.1.tar.gz"
    own.parent.mkdir(parents=True)
    own.write_bytes(other := tar_of({"x": b""}))
    source = serve(server, "dtd", tree, status=404)
    fault, = get("dtd", source, root, tree)
    assert re.search(naming(own, own.stat().st_size), fault)
    server.pages["/dtd-r1.0.1.tar.gz"].status = 200
    assert get("dtd", source, root, tree) == [] and own.read_bytes() == other


def test_what_was_fetched_and_refused_is_not_fetched_again_until_it_is_deleted(tmp_path, mini, server):
    tree, root = mini("ucf101"), tmp_path / "data"
    content = zip_of({"other/x.jpg": b""})
    archive = replace(SOURCES["ucf101"].parts[0][0], sources=(server.put("/a", content),))
    for _ in range(2):
        fault, = get("ucf101", Source(((archive,),)), root, tree)
        assert re.search(naming("UCF-101-midframes", "other"), fault) and len(server.requests) == 1
    assert "delete" in fault


@pytest.mark.parametrize("spoil, reason", [
    (lambda files: {path.replace("dtd/images", "dtd/jpg"): file for path, file in files.items()},
     "dtd/images"),
    (lambda files: dict(list(files.items())[1:]), "1 of 21"),
    (lambda files: {path.replace(".jpg", ".JPG"): file for path, file in files.items()}, "case"),
    (lambda files: {**files, "../evil": b""}, "../evil"),
])
def test_an_archive_with_other_contents_puts_nothing_in_place(tmp_path, mini, server, spoil, reason):
    tree, root = mini("dtd"), tmp_path / "data"
    content = tar_of(spoil(files_below(tree / "images", "dtd/images/")))
    archive = known(SOURCES["dtd"].parts[0][0], content, server.put("/a", content))
    fault, = get("dtd", Source(((archive,),)), root, tree)
    assert reason in fault and str(tmp_path / "data") not in reason
    assert sorted(os.listdir(root / "dtd")) == sorted([LOCK, FETCHED, class_of("dtd").split])


def test_an_aircraft_archive_without_an_image_that_its_lists_name_is_refused(tmp_path, mini, server):
    tree, root = mini("fgvc_aircraft"), tmp_path / "data"
    os.remove(images_below(tree)[0])
    fault, = get("fgvc_aircraft", serve(server, "fgvc_aircraft", tree), root, tree)
    assert "1 of 21" in fault
    assert set(os.listdir(root / tree.name)) == {LOCK, FETCHED}


def test_the_second_archive_serves_where_the_first_cannot_be_had(tmp_path, mini, server):
    tree = mini("caltech101")
    source = serve(server, "caltech101", tree)
    server.pages["/caltech-101.zip"].content = HTML
    assert get("caltech101", source, tmp_path / "data", tree) == []
    assert [path for path, _ in server.requests] == ["/caltech-101.zip", "/101_ObjectCategories.tar.gz"]


# The mirror

@pytest.mark.parametrize("prefix", ["stanford_cars/", "", "some/where/"])
def test_the_mirror_is_asked_only_on_request_and_its_folders_are_found(tmp_path, mini, server, prefix):
    tree, root = mini("stanford_cars"), tmp_path / "data"
    content = zip_of({**files_below(tree, prefix), f"{prefix}split_fewshot/shot_1-seed_1.pkl": b"pickle"})
    mirror = Remote("stanford_cars.zip", (server.put("/mirror", content),))
    source = replace(serve(server, "stanford_cars", tree, status=404), mirror=mirror)
    assert len(install("stanford_cars", source, root, drive=Drive())) == 3
    assert "/mirror" not in [path for path, _ in server.requests]
    assert install("stanford_cars", source, root, mirror=True, drive=Drive()) == []
    assert verify("stanford_cars", source, root).faults == []
    assert not {"split_fewshot", FETCHED} & set(os.listdir(root / "stanford_cars"))


def test_a_mirror_that_lacks_images_puts_nothing_in_place(tmp_path, mini, server):
    tree, root = mini("dtd"), tmp_path / "data"
    content = zip_of(dict(list(files_below(tree, "dtd/").items())[1:]))
    source = Source(serve(server, "dtd", tree, status=404).parts, Remote("dtd.zip", (server.put("/mirror", content),)))
    faults = get("dtd", source, root, tree, mirror=True)
    assert "1 of 21" in faults[-1]
    assert state_of("dtd", source, root) == "images missing"


# Stopped on the way

@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("name", ["dtd", "fgvc_aircraft"])
def test_stopped_anywhere_nothing_passes_for_complete_and_the_next_call_finishes(tmp_path, mini, server, how, name):
    """The process stops itself at its nth step: a file that is written or renamed. n is drawn over all of them."""
    tree, root = mini(name), tmp_path / "data"
    source = serve(server, name, tree)
    counter = tmp_path / "steps"

    def work(stop):
        steps = 0

        def step(function):
            def wrapped(*args, **kwargs):
                nonlocal steps
                if steps == stop:
                    os.kill(os.getpid(), how)
                steps += 1
                counter.write_text(str(steps))
                return function(*args, **kwargs)
            return wrapped

        for module, function in ((os, "rename"), (os, "replace"), (shutil, "copyfileobj")):
            setattr(module, function, step(getattr(module, function)))
        get(name, source, root, tree)

    def run(stop):
        process = start(work, stop)
        process.join(60)
        return process.exitcode

    assert run(-1) == 0
    total = int(counter.read_text())
    assert total > 20
    for stop in [*random.Random(0).sample(range(total - 4), 3), *range(total - 4, total)]:
        shutil.rmtree(root)
        assert run(stop) != 0
        complete = state_of(name, source, root) == "complete"
        assert not complete or verify(name, source, root, full=True).faults == []
        if how == signal.SIGTERM:
            drafts = [path for path in root.rglob(".*") if path.is_dir()]
            assert drafts == []
        assert get(name, source, root, tree) == []
        assert verify(name, source, root, full=True).faults == []
        assert not [path for path in root.rglob("*") if path.is_dir() and (path.name[0] == "." or path.name == FETCHED)]


def test_two_processes_install_a_dataset_once(tmp_path, mini, server):
    tree, root = mini("dtd"), tmp_path / "data"
    go = threading.Event()
    source = serve(server, "dtd", tree, wait=go)

    def work():
        assert get("dtd", source, root, tree) == []

    processes = [start(work) for _ in range(2)]
    until(lambda: server.requests)
    go.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.requests) == 1 and verify("dtd", source, root).faults == []


# The table

@pytest.mark.parametrize("name", SOURCES)
def test_every_dataset_says_how_to_get_it(name, tmp_path):
    source, kind = SOURCES[name], class_of(name)
    for archives in source.parts:
        assert all(archive.targets == archives[0].targets for archive in archives)
        for archive in archives:
            assert archive.sources or source.by_hand or len(archives) > 1
            assert all(url.startswith(("https://", "drive:")) or archive.digest for url in archive.sources)
            assert archive.digest.partition(":")[0] in ("", "md5", "sha256")
    assert kind.name == name and kind.folder and (kind.split_id or name == "fgvc_aircraft")
    steps = "\n".join(steps_by_hand(name, source, tmp_path))
    assert str(tmp_path / kind.folder) in steps and f"download {name}" in steps


def test_the_table_has_the_benchmarks_datasets():
    assert tuple(SOURCES) == FAMILIES["standard"].members
