"""Lists of images: the few-shot draw that reproduces Dassl's, labels and class names, files on disk."""
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from p2c.engine import DatasetBase, Datum, write_json
from p2c.engine import datasets as datasets_module

# (seed, shots): items drawn of train class 0, train class 5, val class 0, val class 5; measured on Dassl 0.6.3.
GOLDEN = {
    (1, 1): ("4", "15", "7", "7"),
    (1, 4): ("4 18 2 8", "10 0 18 17", "0 3 5 1", "1 7 5 2"),
    (1, 16): (
        "4 18 2 8 3 7 12 14 13 10 6 15 1 16 0 9", "3 5 16 12 11 7 15 0 14 17 4 6 2 1 9 8", "0 6 1 4", "6 0 3 2",
    ),
    (2, 16): (
        "1 2 18 11 5 16 12 10 4 14 9 3 0 13 15 19", "19 8 15 9 16 12 11 18 14 13 10 6 4 5 1 3", "5 7 4 0", "3 0 7 6",
    ),
    (3, 4): ("7 18 17 4", "16 12 0 2", "2 6 4 0", "0 1 3 6"),
}


def items(labels):
    """One item per label; its path is its position among the items of the label."""
    counts = {}
    for label in labels:
        counts[label] = counts.get(label, -1) + 1
        yield Datum(str(counts[label]), label, classname=f"name {label}", check=False)


def drawn(sample, label):
    return " ".join(item.impath for item in sample if item.label == label)


@pytest.mark.parametrize("seed, shots", GOLDEN)
@pytest.mark.parametrize("own_generator", [False, True])
def test_few_shot_draw_is_dassls(seed, shots, own_generator):
    """Check 8."""
    train = list(items([label for label in range(6) for _ in range(20)]))
    val = list(items([label for label in range(6) for _ in range(8)]))
    dataset = DatasetBase(train_x=train)
    random.seed(seed)
    rng = random.Random(seed) if own_generator else random
    train = dataset.generate_fewshot_dataset(train, num_shots=shots, rng=rng)
    val = dataset.generate_fewshot_dataset(val, num_shots=min(shots, 4), rng=rng)
    assert (drawn(train, 0), drawn(train, 5), drawn(val, 0), drawn(val, 5)) == GOLDEN[seed, shots]


def test_labels_with_few_images():
    """Check 9."""
    source = list(items([2, 2, 2, 0, 0, 1]))
    dataset = DatasetBase(train_x=source)
    sample = dataset.generate_fewshot_dataset(source, num_shots=2)
    assert [item.label for item in sample] == [2, 2, 0, 0, 1]
    assert len(dataset.generate_fewshot_dataset(source, num_shots=2, repeat=True)) == 6
    state = random.getstate()
    assert dataset.generate_fewshot_dataset(source, num_shots=0) is source
    assert dataset.generate_fewshot_dataset(source, source, num_shots=0) == (source, source)
    assert random.getstate() == state


def test_several_sources_give_several_samples(capsys):
    source = list(items([0, 0, 1]))
    first, second = DatasetBase(train_x=source).generate_fewshot_dataset(source, source, num_shots=1)
    assert [item.label for item in first] == [item.label for item in second] == [0, 1]
    assert capsys.readouterr().out == "Creating a 1-shot dataset\n"


def test_gaps_in_the_labels_are_reported(capsys):
    """Check 11."""
    dataset = DatasetBase(train_x=list(items([5, 2, 5])))
    assert dataset.num_classes == 6
    assert dataset.classnames == ["name 2", "name 5"]
    assert dataset.lab2cname == {2: "name 2", 5: "name 5"} and list(dataset.lab2cname) == [2, 5]
    assert "label 0, 1, 3, 4: num_classes is 6 but there are 2 class names" in capsys.readouterr().out


def test_a_label_with_two_names_does_not_depend_on_the_hash_seed():
    """Check 11."""
    script = (
        "import sys, importlib.util as u\n"
        "spec = u.spec_from_file_location('datasets', sys.argv[1])\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "items = [module.Datum('x', label, 0, name, check=False) for label, name in\n"
        "         [(1, 'b'), (0, 'cat'), (0, 'dog'), (1, 'a'), (0, 'owl')]]\n"
        "print(module.DatasetBase.get_lab2cname(items))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script, datasets_module.__file__], env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in range(5)
    }
    assert outputs == {"({0: 'cat', 1: 'b'}, ['cat', 'b'])\n"}


def test_a_split_is_written_as_dassl_writes_it(tmp_path):
    """Check 13."""
    path = tmp_path / "split_zhou_Pets.json"
    write_json({"train": [["a/b.jpg", 0, "caf\u00e9"]], "val": []}, path)
    assert path.read_bytes() == (
        b'{\n    "train": [\n        [\n            "a/b.jpg",\n            0,\n            "caf\\u00e9"\n'
        b'        ]\n    ],\n    "val": []\n}'
    )
    assert json.loads(path.read_text())["train"][0][2] == "caf\u00e9"


def test_datum_names_the_file_that_is_missing(tmp_path):
    missing = tmp_path / "missing.jpg"
    with pytest.raises(FileNotFoundError, match="missing.jpg"):
        Datum(missing)
    assert Datum(missing, check=False).impath == str(missing)
    with pytest.raises(AttributeError):
        Datum(Path(__file__)).label = 3


def test_a_data_set_needs_training_images():
    with pytest.raises(ValueError, match="empty"):
        DatasetBase(train_x=[])
    with pytest.raises(TypeError, match="None"):
        DatasetBase()


def test_domains_are_checked():
    dataset = DatasetBase(train_x=list(items([0])))
    dataset.domains = ["photo", "sketch"]
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(AssertionError):
        dataset.check_input_domains([], ["sketch"])
    with pytest.raises(ValueError, match="clipart"):
        dataset.check_input_domains(["photo"], ["clipart"])


def test_splitting_keeps_the_order_of_appearance():
    source = list(items([2, 0, 2]))
    dataset = DatasetBase(train_x=source)
    by_label = dataset.split_dataset_by_label(source)
    assert list(by_label) == [2, 0] and by_label[2] == [source[0], source[2]]
    assert dataset.split_dataset_by_domain(source) == {0: source}
