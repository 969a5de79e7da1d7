"""The shapes family: its pictures are the same everywhere, its files appear whole, its backbone knows its words."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file

import p2c
from p2c.datasets import drawing, shapes
from p2c.datasets.drawing import PictureSpec, RandomStream, parse_spec

FEW = {"train": 2, "val": 1, "test": 1}
WEIGHTS = Path(p2c.__file__).parent / "clip" / "builtin"

# SHA-256 over the pixels of pictures 0 of every second class, clean and in style; a change here changes the datasets
DIGESTS = {
    "shapes": "65b17f8ccab3adfa73caa9e32cfe687650264d3476923a3ab90ee6fd708a417b",
    "shapes_dark": "fe9fb7a0bf4e05b872a504d1ae38f9aa87607e5bc4e0fc0cb56e629a90bb6e61",
    "shapes_blur": "cc7ad949c6d02dcd2ffb01d15cc9e66866b0baf3dc397ef18f92604055498611",
    "shapes_noise": "56c1650adad3a813c4fa5894e30b982b4af0d6de62cc54fd4c170d07622368fe",
    "shapes_texture": "465ff14fb1de99c2bcbe2d94d3271e87267721cc7a7dcdde4ee37276da51856a",
    "shapes_sketch": "d1002be263bfc41ce941e617e57b3692861dfd463176e2071b90a91ba4ceddd1",
    "shapes_counts": "31e13e50aa6fc8e6ac161ae7f1c6a05972900b5aeb0b58eaaca237b9b0741827",
    "shapes_sizes": "501de17fd27d36313899f5b6c32e1d64decac0b7b4087214480f6da600f015f8",
    "shapes_pairs": "fd7cc8d299197a4732f99b0d581341fb5565ac4ea7ca15dbd71af9d939237984",
    "shapes_grounds": "f526653d94645381e79c3f93cbf0f81a30d8ade1faf6d1d21bead259e2cb63aa",
}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", shapes.FAMILY)
def test_pixels_match_the_committed_digest(name):
    digest = hashlib.sha256()
    for label in range(0, 24, 2):
        for styled in (False, True):
            pixels = shapes.picture(name, "train", label, 0, styled)
            assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
            digest.update(pixels.tobytes())
    assert digest.hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("name", shapes.FAMILY)
def test_no_floating_point_number_touches_a_picture(name):
    clean = shapes.picture(name, "train", 0, 0, styled=False).astype(np.int32)
    assert shapes.FAMILY[name].style(clean, RandomStream("any")).dtype == np.int32


def test_pictures_differ_between_datasets_streams_classes_and_indices():
    pictures = [shapes.picture(name, stream, label, index, styled=False).tobytes()
                for name in shapes.FAMILY for stream in ("train", "val", "test")
                for label in (0, 1) for index in (0, 1)]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("name", shapes.FAMILY)
def test_every_dataset_has_at_least_24_different_classes(name):
    classnames = shapes.FAMILY[name].contents
    assert len(set(classnames)) == len(classnames) >= 24


def test_a_class_has_32_training_20_validation_and_40_test_pictures():
    assert shapes.PICTURES == {"train": 32, "val": 20, "test": 40}


def test_five_styles_share_the_classes_of_shapes_and_the_other_sets_share_none():
    source = set(shapes.Shapes.contents)
    same = [name for name, member in shapes.FAMILY.items() if set(member.contents) == source]
    others = [member for name, member in shapes.FAMILY.items() if name not in same]
    assert len(same) - 1 >= 5 and len({member.contents for member in others}) == len(others) >= 3
    assert all(source.isdisjoint(member.contents) for member in others)


def test_generation_writes_the_split_and_every_picture_losslessly(tmp_path):
    shapes.generate("shapes_pairs", tmp_path / "shapes_pairs", FEW)
    text = (tmp_path / "shapes_pairs" / "split_shapes_pairs.json").read_text(encoding="ascii")
    split = json.loads(text)
    assert list(split) == ["train", "val", "test"]
    assert text == json.dumps(split, indent=4, separators=(",", ": "))
    listed = set()
    for stream, items in split.items():
        assert [label for _, label, _ in items] == [label for label in range(24) for _ in range(FEW[stream])]
        for place, (path, label, classname) in enumerate(items):
            assert classname == shapes.ShapesPairs.contents[label]
            with Image.open(tmp_path / "shapes_pairs" / "images" / path) as image:
                assert image.format == "PNG"
                drawn = shapes.picture("shapes_pairs", stream, label, place % FEW[stream])
                np.testing.assert_array_equal(np.asarray(image), drawn)
            listed.add(path)
    images = tmp_path / "shapes_pairs" / "images"
    assert {p.relative_to(images).as_posix() for p in images.rglob("*.png")} == listed


def test_a_finished_folder_is_left_alone(tmp_path):
    folder = tmp_path / "shapes"
    shapes.generate("shapes", folder, FEW)
    (folder / "images" / "red_solid_star" / "train_0000.png").write_bytes(b"the user's own")
    before = contents(folder)
    shapes.generate("shapes", folder, FEW)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_an_interrupted_generation_leaves_nothing_and_is_done_again(tmp_path, monkeypatch):
    draw, calls = shapes.picture, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(shapes, "picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate("shapes", tmp_path / "shapes", FEW)
    assert list(tmp_path.iterdir()) == []
    shapes.generate("shapes", tmp_path / "shapes", FEW)
    monkeypatch.undo()
    shapes.generate("shapes", tmp_path / "again", FEW)
    assert contents(tmp_path / "shapes") == contents(tmp_path / "again")


def test_two_generations_at_once_do_no_harm(tmp_path):
    threads = [threading.Thread(target=shapes.generate, args=("shapes", tmp_path / "shapes", FEW)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert len(contents(tmp_path / "shapes")) == 24 * 4 + 1


def test_a_folder_that_holds_something_else_is_an_error_and_stays(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"has no split_shapes\.json"):
        shapes.generate("shapes", tmp_path / "shapes", FEW)
    assert contents(tmp_path) == {"shapes/mine.txt": b"mine"}


def test_a_phrase_is_read_into_what_its_picture_must_show():
    assert parse_spec("three dotted hearts") == PictureSpec(count="three", fill="dotted", shape="heart")
    expected = PictureSpec(size="big", color="red", shape="ring", tone="tan")
    assert parse_spec("big red ring on a tan background") == expected
    assert parse_spec("blue star above a pink heart") == PictureSpec(
        color="blue", shape="star", relation="above", second="heart", second_color="pink")
    with pytest.raises(ValueError, match="Unknown word 'wooden' in 'wooden star'"):
        parse_spec("wooden star")


@pytest.mark.parametrize("shape", drawing.SHAPES)
def test_every_shape_fits_its_radius_and_shows_in_every_fill(shape):
    for fill in drawing.FILLS:
        picture = np.zeros((64, 64, 3), np.int32)
        drawing.paint(picture, drawing.PlacedShape(shape, fill, (0, 200, 0), 256, 256, 160))
        ys, xs = np.nonzero(picture[:, :, 1])
        assert len(ys) > 100
        assert (np.hypot(ys - 31.5, xs - 31.5) <= 1.1 * 20 + 1).all()


def test_a_shape_may_lie_partly_or_wholly_outside_the_picture():
    picture = np.zeros((64, 64, 3), np.int32)
    drawing.paint(picture, drawing.PlacedShape("circle", "solid", (9, 9, 9), 4000, -4000, 80))
    assert not picture.any()
    drawing.paint(picture, drawing.PlacedShape("circle", "solid", (9, 9, 9), 0, 0, 80))
    assert picture[0, 0, 0] == 9 and picture[63, 63, 0] == 0


@pytest.fixture(scope="module")
def backbone():
    """The shipped weights in open_clip's own CLIP, without our loader: model, statistics, known ids, tokenizer."""
    facts = json.loads((WEIGHTS / "tiny-shapes.json").read_text())
    state = load_file(WEIGHTS / "tiny-shapes.safetensors")
    ids, rows = state.pop("token_embedding.ids"), state.pop("token_embedding.rows")
    table = torch.zeros(facts["model"]["text_cfg"]["vocab_size"], rows.shape[1])
    table[ids] = rows
    state["token_embedding.weight"] = table
    model = open_clip.CLIP(**facts["model"])
    model.load_state_dict(state)
    return model.eval(), facts["preprocess"], set(ids.tolist()), SimpleTokenizer()


@torch.no_grad()
def zero_shot(backbone, name, count, styled):
    """Share of held-out pictures, `count` a class, that fall to their class by "a photo of a {}."."""
    model, statistics, _, _ = backbone
    classnames = shapes.FAMILY[name].contents
    pixels = np.stack([shapes.picture(name, "held-out", label, index, styled)
                       for label in range(len(classnames)) for index in range(count)])
    mean, std = (torch.tensor(statistics[key])[:, None, None] for key in ("mean", "std"))
    image = model.encode_image((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    text = model.encode_text(open_clip.tokenize([f"a photo of a {classname}." for classname in classnames]))
    logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    return (logits.argmax(1) == torch.arange(len(classnames)).repeat_interleave(count)).float().mean().item()


def test_weights_are_at_most_8_megabytes():
    assert (WEIGHTS / "tiny-shapes.safetensors").stat().st_size <= 8_000_000


@pytest.mark.parametrize("name", shapes.FAMILY)
def test_all_words_of_class_names_and_templates_have_rows(backbone, name):
    _, _, known, tokenizer = backbone
    templates = ("itap of a .", "a bad photo of the .", "a origami .", "a photo of the large .", "a in a video game .",
                 "art of the .", "a photo of the small .", "X")
    for text in (shapes.FAMILY[name].template.format(""), *shapes.FAMILY[name].contents, *templates):
        assert set(tokenizer.encode(text)) <= known, text


def test_zero_shot_is_good_on_clean_pictures(backbone):
    assert zero_shot(backbone, "shapes", 8, styled=False) > 0.7


@pytest.mark.parametrize("name", shapes.FAMILY)
def test_zero_shot_on_a_datasets_own_style_is_worse_than_clean_yet_3_times_chance(backbone, name):
    own = zero_shot(backbone, name, 5, styled=True)
    assert 3 / 24 <= own < zero_shot(backbone, name, 5, styled=False) - 0.1
