"""From image files to batches: what reads them, what is refused, and that batches depend on seed and epoch alone."""
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_fixtures import TinyData
from messages import naming
from PIL import Image, ImageOps
from torchvision import transforms as T

from p2c.engine import (
    DATASET_REGISTRY,
    DataManager,
    DatasetWrapper,
    Datum,
    build_data_loader,
    build_sampler,
    build_transform,
    files,
    read_image,
)
from p2c.engine.data import set_epoch


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: b"no image", lambda content: content[:len(content) // 2],
    lambda content: content.replace(b"IDAT", b"IDAX"),
    lambda content: content[:16] + (60000).to_bytes(4, "big") * 2 + content[24:],  # 3.6 gigapixels
])
def test_a_broken_image_is_named(images, tmp_path, damage):
    path = tmp_path / "broken.png"
    path.write_bytes(damage(Path(images[0].impath).read_bytes()))
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert re.search(naming(path, "replace the file"), str(error.value))


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(ValueError, match=naming(tmp_path / "gone.png", "No such file")):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line_whoever_reads_it(config, tmp_path, workers):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    cfg = config("DATALOADER.NUM_WORKERS", workers)
    loader = build_data_loader(cfg, data_source=[Datum(path)], tfm=T.ToTensor(), is_train=False)
    with pytest.raises(ValueError) as error:
        list(loader)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_of_16_bits_are_scaled(tmp_path, suffix):
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image)[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]


@pytest.mark.parametrize("mode, suffix, colour, expected", [
    ("L", "jpg", 200, (200, 200, 200)),
    ("CMYK", "jpg", (0, 255, 255, 0), (254, 0, 0)),
    ("LA", "png", (90, 7), (90, 90, 90)),
    ("RGBA", "png", (10, 20, 30, 0), (10, 20, 30)),
    ("1", "png", 1, (255, 255, 255)),
    ("P", "gif", 0, (0, 0, 0)),
    ("RGB", "bmp", (1, 2, 3), (1, 2, 3)),
])
def test_every_kind_of_image_becomes_rgb_whatever_its_files_name(tmp_path, mode, suffix, colour, expected):
    Image.new(mode, (8, 8), colour).save(tmp_path / f"image.{suffix}")
    path = (tmp_path / f"image.{suffix}").rename(tmp_path / "named.jpg")
    image = read_image(path)
    assert image.mode == "RGB" and image.size == (8, 8)
    assert max(abs(a - b) for a, b in zip(image.getpixel((4, 4)), expected, strict=True)) <= 2


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "image.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("setting, size", [(None, (8, 4)), (False, (8, 4)), (True, (4, 8))])
def test_a_dataset_is_read_as_its_setting_says(config, tmp_path, setting, size):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "image.jpg", exif=exif)
    cfg = config()
    if setting is not None:
        cfg.defrost()
        cfg.INPUT.AS_SHOWN = setting
    assert DatasetWrapper(cfg, [Datum(str(tmp_path / "image.jpg"))])[0]["img"].size == size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_photo_is_turned_as_its_note_says_if_shown(tmp_path, suffix, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"image.{suffix}", exif=exif)
    with Image.open(tmp_path / f"image.{suffix}") as stored:
        upright, plain = np.asarray(ImageOps.exif_transpose(stored)), np.asarray(stored)
    assert np.array_equal(upright, plain) == (orientation == 1)
    assert np.array_equal(read_image(tmp_path / f"image.{suffix}", as_shown=True), upright)
    assert np.array_equal(read_image(tmp_path / f"image.{suffix}"), plain)


def test_damaged_exif_data_say_nothing(tmp_path):
    image = Image.new("RGB", (8, 4), "red")
    image.save(tmp_path / "image.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff\1")
    assert read_image(tmp_path / "image.jpg", as_shown=True).size == (8, 4)


@pytest.mark.parametrize("mode, colour", [("RGBA", (10, 20, 30, 0)), ("LA", (90, 0)), ("RGBA", (0, 0, 0, 127))])
def test_what_is_transparent_is_white_if_shown(tmp_path, mode, colour):
    Image.new(mode, (2, 2), colour).save(tmp_path / "image.png")
    expected = 255 - (255 - colour[0]) * colour[-1] / 255
    assert abs(read_image(tmp_path / "image.png", as_shown=True).getpixel((0, 0))[0] - expected) <= 1
    assert read_image(tmp_path / "image.png").getpixel((0, 0))[0] == colour[0]


def test_a_transparent_colour_of_a_palette_is_white_if_shown(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=1)
    assert np.asarray(read_image(tmp_path / "palette.png", as_shown=True)).tolist() == [[[10, 20, 30], [255] * 3]]


@pytest.mark.parametrize("kind, values, expected", [
    (np.int32, [0, 128, 255], [0, 128, 255]),
    (np.uint16, [0, 128, 255], [0, 128, 255]),
    (np.uint16, [0, 2048, 4095], [0, 128, 255]),  # of 12 bits
    (np.uint16, [0, 32768, 65535], [0, 128, 255]),
    (np.int32, [-100, 0, 100], [0, 128, 255]),
    (np.int32, [0, 500_000, 1_000_000], [0, 128, 255]),
    (np.float32, [0, 0.5, 1], [0, 128, 255]),
    (np.float32, [0, 100, 255], [0, 100, 255]),
    (np.float32, [float("nan"), 0.5, 1], [0, 128, 255]),
    (np.int32, [7, 7, 7], [7, 7, 7]),
])
def test_numbers_of_more_than_8_bits_are_scaled_to_what_a_viewer_shows(tmp_path, kind, values, expected):
    Image.fromarray(np.array([values], kind)).save(tmp_path / "image.tif")
    assert np.asarray(read_image(tmp_path / "image.tif", as_shown=True))[0, :, 0].tolist() == expected


def test_a_photo_without_a_reader_names_what_installs_one(tmp_path, monkeypatch):
    monkeypatch.setitem(files.UNREAD, ".heic", "pip install pillow-heif")
    (tmp_path / "image.HEIC").write_bytes(b"\0\0\0\x18ftypnone\0\0\0\0")
    with pytest.raises(ValueError, match=naming("image.HEIC", "pip install pillow-heif")):
        read_image(tmp_path / "image.HEIC")


def test_a_large_image_is_read_without_a_warning_and_a_bomb_is_named(tmp_path, monkeypatch, recwarn):
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_image(tmp_path / "image.png").size == (40, 40) and not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="image.png"):
        read_image(tmp_path / "image.png")


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_gives_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=b"\x80\xff")
    assert np.asarray(read_image(tmp_path / "palette.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_unknown_transforms_interpolations_and_samplers_are_refused_with_the_choices(config, images):
    with pytest.raises(ValueError, match=naming("randaugment2", "random_translation")):
        build_transform(config(), choices=["randaugment2"])
    with pytest.raises(KeyError, match=naming("'lanczos'", "bilinear, bicubic, nearest")):
        build_transform(config("INPUT.INTERPOLATION", "lanczos"))
    with pytest.raises(ValueError, match=naming("Unknown sampler type: X", "RandomSampler")):
        build_sampler("X", config(), images)


def batches_of(config, images, *, workers, seed=1, evaluate=False):
    """(indices, pixels) of each batch of three epochs."""
    cfg = config("DATALOADER.NUM_WORKERS", workers, "SEED", seed, "INPUT.TRANSFORMS",
                 ("random_resized_crop", "random_translation", "cutout", "gaussian_noise"))
    tfm = build_transform(cfg)
    tfm_test = build_transform(cfg, is_train=False)
    loader = build_data_loader(cfg, "RandomSampler", images, 4, tfm=tfm, is_train=True)
    test_loader = build_data_loader(cfg, data_source=images[:8], tfm=tfm_test, is_train=False)
    batches = []
    for epoch in range(3):
        set_epoch(loader, epoch)
        batches += [(batch["index"].tolist(), batch["img"]) for batch in loader]
        if evaluate:
            list(test_loader)
            torch.rand(3), random.random(), np.random.rand()
    return batches


def equal(one, other):
    return len(one) == len(other) and all(i == j and p.equal(q) for (i, p), (j, q) in zip(one, other, strict=True))


def test_batches_depend_on_seed_and_epoch_alone(config, images):
    """Check 18."""
    expected = batches_of(config, images, workers=0)
    for workers in (1, 2):
        assert equal(batches_of(config, images, workers=workers), expected)
    assert equal(batches_of(config, images, workers=0, evaluate=True), expected)
    orders = [[i for indices, _ in expected[first:first + 12] for i in indices] for first in (0, 12, 24)]
    assert all(sorted(order) == list(range(48)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    looks = [pixels[indices.index(0)] for indices, pixels in expected if 0 in indices]
    assert len(looks) == 3 and not looks[0].equal(looks[1]) and not looks[1].equal(looks[2])
    other = batches_of(config, images, workers=0, seed=2)
    assert [indices for indices, _ in other] != [indices for indices, _ in expected]


def test_reading_an_item_leaves_the_global_generators_alone(config, images):
    wrapper = DatasetWrapper(config(), images, build_transform(config()), is_train=True)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    wrapper[0], wrapper[5]
    assert torch.rand(2).equal(expected[0]) and (random.random(), np.random.rand()) == expected[1:]


@DATASET_REGISTRY.register()
class TinyDrawing(TinyData):
    """Draws while it is built, as datasets of Dassl do."""

    def __init__(self, cfg):
        super().__init__(cfg)
        random.random(), np.random.rand(), torch.rand(1)


@pytest.mark.parametrize("batch_size, left_out", [(500, None), (72, None), (50, "22 of 72")])
def test_training_images_that_fill_no_batch_are_counted(config, monkeypatch, batch_size, left_out):
    lines = []
    monkeypatch.setattr("p2c.engine.data.log.info", lines.append)
    data = DataManager(config("DATALOADER.TRAIN_X.BATCH_SIZE", batch_size))
    images = sum(len(batch["index"]) for batch in data.train_loader_x)
    found = [line for line in lines if "leaves out" in line]
    assert images == (72 if left_out is None else 50)
    assert not found if left_out is None else re.search(left_out, found[0])


def test_building_the_data_manager_leaves_the_global_generators_alone(config):
    """Check 19."""
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    DataManager(config("DATALOADER.NUM_WORKERS", 2, "DATASET.NAME", "TinyDrawing"))
    assert torch.get_rng_state().equal(states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]


def test_domain_samplers_balance_the_domains(config, images):
    for name, n_domain in [("RandomDomainSampler", 3), ("SeqDomainSampler", 0), ("RandomDomainSampler", 2)]:
        sampler = build_sampler(name, config(), images, batch_size=6, n_domain=n_domain)
        order = list(sampler)
        assert len(order) == len(sampler) == len(set(order)) and order == list(sampler)
        domains = [images[i].domain for i in order]
        per_domain = 6 // (n_domain or 3)
        for first in range(0, len(order), per_domain):
            assert len(set(domains[first:first + per_domain])) == 1
        if name == "SeqDomainSampler":
            assert domains[:6] == [0, 0, 1, 1, 2, 2]
        sampler.set_epoch(1)
        assert list(sampler) != order
    with pytest.raises(ValueError, match="7"):
        build_sampler("SeqDomainSampler", config(), images, batch_size=7)
    with pytest.raises(ValueError, match="Batches of 4 domains.*the data have 3"):
        build_sampler("RandomDomainSampler", config(), images, batch_size=8, n_domain=4)


def test_class_sampler_repeats_images_of_small_classes(config, images):
    few = images[:12] + images[12:14]
    sampler = build_sampler("RandomClassSampler", config(), few, batch_size=8, n_ins=4)
    order = list(sampler)
    assert len(order) == 8 and {few[i].label for i in order} == {0, 1}
    labels = [few[i].label for i in order]
    assert labels[0] == labels[1] == labels[2] == labels[3] != labels[4]
    with pytest.raises(ValueError, match="N_INS"):
        build_sampler("RandomClassSampler", config(), few, batch_size=8, n_ins=16)
    with pytest.raises(ValueError, match="3 classes"):
        build_sampler("RandomClassSampler", config(), few, batch_size=12, n_ins=4)
