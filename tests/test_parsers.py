"""Readers of other people's or earlier files: arbitrary content is handled, and what was written is read back."""
import contextlib
import csv
import io
import json
import os

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from run_folders import NEW_BLOCK, OLD_BLOCK, log_text
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from p2c.datasets.folder import read_csv
from p2c.datasets.splits import PARTS, Item, Split, check_items, read_names, read_split
from p2c.engine import build_evaluator
from p2c.engine.curves import CurveWriter, truncate_curves
from p2c.engine.files import write_json
from p2c.engine.results import read_results
from p2c.framework import get_cfg_default
from p2c.tables.folders import TESTED, TRAINED, ZERO_SHOT, Group, half_layout, matches
from p2c.tables.runs import END_OF_TRAINING, read_run

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda trees: st.lists(trees, max_size=3) | st.dictionaries(st.text(max_size=5), trees, max_size=3), max_leaves=8)
LINES = st.text(max_size=60) | st.sampled_from([
    *END_OF_TRAINING, "=> result", "* accuracy: 12.5%", "* accuracy: 1.2.3%", "* accuracy: 1e999%", "* error: -e%"])
WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=8)
SPLIT = st.integers(1, 4).flatmap(lambda classes: st.tuples(
    st.lists(WORDS, min_size=classes, max_size=classes, unique=True),
    st.lists(st.tuples(st.sampled_from(PARTS), st.integers(0, classes - 1)), max_size=12)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for the examples of a test, which write over each other."""
    return tmp_path_factory.mktemp("parsed")


# Results of runs


@given(lines=st.lists(LINES, max_size=12).map("\n".join).map(str.encode) | st.binary(max_size=80),
       keyword=st.sampled_from(["accuracy", "error", "accuracy|error", "(acc|hit).*y"]), test_log=st.booleans())
def test_any_log_gives_a_finite_number_or_a_reason(place, lines, keyword, test_log):
    (place / "log").mkdir(exist_ok=True)
    (place / "log" / "log.txt").write_bytes(lines)
    run = read_run(str(place / "log"), keyword, test_log)
    assert run.fault or -1e308 < run.value < 1e308


@given(predictions=st.lists(st.integers(0, 2), min_size=1, max_size=40), before=st.lists(LINES, max_size=3))
def test_what_the_evaluator_says_is_read_back(place, predictions, before):
    evaluator = build_evaluator(get_cfg_default().clone())
    evaluator.process(torch.nn.functional.one_hot(torch.tensor(predictions), 3), torch.zeros(len(predictions)).long())
    with contextlib.redirect_stdout(io.StringIO()) as said:
        results = evaluator.evaluate()
    (place / "said").mkdir(exist_ok=True)
    (place / "said" / "log.txt").write_text("\n".join([*before, "Finish training", said.getvalue()]), encoding="utf-8",
                                            errors="replace")
    for keyword, name in (("accuracy", "accuracy"), ("error", "error_rate"), ("macro_f1", "macro_f1")):
        assert read_run(str(place / "said"), keyword, False).value == pytest.approx(results[name], abs=0.05 + 1e-9)


@given(accuracy=st.floats(0, 100), block=st.sampled_from([NEW_BLOCK, OLD_BLOCK]),
       end=st.sampled_from(END_OF_TRAINING))
def test_results_are_preferred_to_the_bit_and_logs_of_all_versions_are_read_as_printed(place, accuracy, block, end):
    folder = place / "both"
    folder.mkdir(exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)
    (folder / "log.txt").write_text(log_text(accuracy, end, block))
    assert read_run(str(folder), "accuracy", False).value == pytest.approx(accuracy, abs=0.05 + 1e-9)
    write_json({"format": "p2c-results", "finished": True, "config": {}, "metrics": {"accuracy": accuracy}},
               folder / "results.json")
    assert read_run(str(folder), "accuracy", False).value == accuracy


@given(record=JSON | st.fixed_dictionaries(
    {"format": st.just("p2c-results"), "finished": JSON | st.just(True)},
    optional={"metrics": JSON | st.dictionaries(st.just("accuracy"), JSON), "config": JSON}))
@example({"format": "p2c-results", "finished": True, "config": {}, "metrics": {"accuracy": 10**400}})
def test_any_results_file_gives_a_finite_number_or_a_reason_and_one_of_ours_is_named(place, record):
    folder = place / "results"
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(record))
    run = read_run(str(folder), "accuracy", False)
    assert run.fault or -1e308 < run.value < 1e308
    assert isinstance(run.config, dict)
    try:
        read = read_results(str(folder))
    except ValueError as error:
        assert str(folder / "results.json") in str(error)
    else:
        assert isinstance(read["config"], dict)


NAMES = st.text("abcXYZ019_.+", min_size=1, max_size=8).filter(lambda name: not name.startswith("."))


@given(trainer=NAMES, config=NAMES, dataset=NAMES.filter(lambda name: name != "evaluation"),
       shots=st.integers(1, 64), seed=st.integers(0, 999))
def test_the_folders_of_the_tables_say_what_ran(tmp_path_factory, trainer, config, dataset, shots, seed):
    """As scripts/run.sh writes them; half of the characters are such as stand between the parts."""
    root = tmp_path_factory.getbasetemp() / "tables" / f"{trainer}-{config}-{dataset}-{shots}-{seed}"
    for layout, path, group, number in (
        (TRAINED, f"{dataset}/{trainer}/{config}_{shots}shots/seed{seed}", Group(trainer, config, shots), str(seed)),
        (TESTED, f"evaluation/{trainer}/{config}_{shots}shots/{dataset}/seed{seed}", Group(trainer, config, shots),
         str(seed)),
        (ZERO_SHOT, f"ZeroshotCLIP/{config}/{dataset}", Group("ZeroshotCLIP", config, 0), ""),
        (half_layout("test_new"), f"test_new/{dataset}/shots_{shots}/{trainer}/{config}/seed{seed}",
         Group(trainer, config, shots), str(seed)),
    ):
        os.makedirs(root / path, exist_ok=True)
        assert (str(root / path), group, dataset, number) in list(matches([str(root)], layout))


# Splits and class names


def make_split(names, images):
    """A split with an image of each class in train and test, and some more."""
    labelled = [(part, label) for part in ("train", "test") for label in range(len(names))] + images
    items = [(part, Item(f"{names[label]}/{number}.jpg".replace("\\", "_").replace("..", "_"), label, names[label]))
             for number, (part, label) in enumerate(labelled)]
    return Split(*([item for chosen, item in items if chosen == part] for part in PARTS))


@given(SPLIT)
def test_a_split_is_read_as_it_was_written(place, drawn):
    split, path = make_split(*drawn), place / "split.json"
    write_json(split._asdict(), path)
    assert read_split(path, place, "mend it") == split


@given(JSON | st.fixed_dictionaries(dict.fromkeys(PARTS, st.lists(st.lists(JSON, max_size=4), max_size=4))))
def test_any_json_is_a_split_or_refused_by_name(place, tree):
    path = place / "any.json"
    path.write_text(json.dumps(tree))
    try:
        split = read_split(path, place, "mend it")
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and str(error).endswith("; mend it")
    else:
        check_items(split, place, path, "mend it")


@given(SPLIT, st.booleans())
def test_a_csv_is_read_as_it_was_written(place, drawn, with_parts):
    names, images = drawn
    split = make_split(sorted(names), images)
    rows = [(item.path, item.classname, part) for part, items in split._asdict().items() for item in items]
    if not with_parts:  # enough images of each class to divide
        rows = [(f"{copy}/{path}", name) for path, name, _ in rows for copy in range(2)]
    path = place / "split.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "class", "split")[:len(rows[0])], *rows])
    if with_parts:
        assert read_csv(path) == split
        return
    read = read_csv(path)
    assert sorted((item.path, item.classname) for part in read for item in part) == sorted(rows)
    assert all({item.label for item in part} == set(range(len(names))) for part in read)


@given(st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=40),
       st.sampled_from([b"", b"path,class\n", b"path,class,split\n"]))
def test_any_text_is_a_csv_of_images_or_refused_by_name(place, content, header):
    path = place / "any.csv"
    path.write_bytes(header + content)
    try:
        split = read_csv(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}")
    else:
        assert split.paths


def test_a_csv_of_a_field_beyond_reading_is_named(tmp_path):
    (tmp_path / "any.csv").write_text(f"path,class\n\"{'a' * 200_000}\n")
    with pytest.raises(ValueError, match=r"any.csv.*CSV"):
        read_csv(tmp_path / "any.csv")


def test_a_csv_keeps_characters_that_end_lines_elsewhere(tmp_path):
    (tmp_path / "any.csv").write_text("path,class,split\na\x85.jpg,oak\u2028tree,test\n", encoding="utf-8")
    assert read_csv(tmp_path / "any.csv").test == [Item("a\x85.jpg", 0, "oak\u2028tree")]


@given(st.dictionaries(WORDS, st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=6),
       st.sampled_from("\t "))
def test_class_names_are_read_as_they_were_written(place, names, between):
    path = place / "classnames.txt"
    path.write_text("".join(f"{folder}{between}{name}\n" for folder, name in names.items()), encoding="utf-8")
    assert read_names(path) == names


@given(st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=40))
def test_any_text_is_a_list_of_class_names_or_refused_by_name(place, content):
    path = place / "any.txt"
    path.write_bytes(content)
    try:
        names = read_names(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}")
    else:
        assert all(folder and name == name.strip() != "" for folder, name in names.items())


# Curves


def points_of(folder):
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    return [(value.tag, event.step) for path in paths for event in EventFileLoader(path).Load()
            for value in event.summary.value]


@given(points=st.lists(st.tuples(st.text(min_size=1, max_size=6), st.integers(0, 20)), max_size=12), data=st.data())
def test_of_a_file_cut_anywhere_exactly_the_wanted_whole_points_stay(tmp_path_factory, points, data):
    folder = tmp_path_factory.mktemp("curves")
    writer, ends = CurveWriter(str(folder)), []
    path, = folder.iterdir()
    for tag, step in points:
        writer.add_scalar(tag, 1.5, step)
        ends.append(path.stat().st_size)
    writer.close()
    length = data.draw(st.integers(0, path.stat().st_size), "bytes that reached the disk")
    os.truncate(path, length)
    unwanted = data.draw(st.sets(st.sampled_from(points)) if points else st.just(set()))
    (folder / "other.txt").write_text("stays")
    truncate_curves(str(folder), lambda tag, step: (tag, step) not in unwanted)
    (folder / "other.txt").unlink()
    assert points_of(folder) == [point for point, end in zip(points, ends, strict=True)
                                 if end <= length and point not in unwanted]
    after = path.stat()
    truncate_curves(str(folder), lambda tag, step: (tag, step) not in unwanted)
    assert path.stat() == after
