"""Lists of images: what this engine says of labels and class names, and draws of a generator of one's own."""
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from p2c.engine import datasets as datasets_module
from p2c.engine.datasets import DatasetBase, Datum, sample_shots


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


def test_datum_names_the_file_that_is_missing(tmp_path):
    missing = tmp_path / "missing.jpg"
    with pytest.raises(FileNotFoundError, match="missing.jpg"):
        Datum(missing)
    assert Datum(missing, check=False).impath == str(missing)
    with pytest.raises(AttributeError):
        Datum(Path(__file__)).label = 3


def items(labels):
    """One item per label, numbered."""
    return [Datum(str(i), label, classname=f"name {label}", check=False) for i, label in enumerate(labels)]


def test_a_separate_generator_draws_what_the_global_one_does():
    source = items([label for label in range(6) for _ in range(20)])
    dataset = DatasetBase(train_x=source)
    random.seed(3)
    expected = [dataset.generate_fewshot_dataset(source, num_shots=4) for _ in range(2)]
    rng, state = random.Random(3), random.getstate()
    assert [sample_shots(source, 4, rng=rng) for _ in range(2)] == expected
    assert random.getstate() == state


def test_gaps_in_the_labels_are_reported(capsys):
    """Check 11."""
    dataset = DatasetBase(train_x=items([5, 2, 5]))
    assert list(dataset.lab2cname) == [2, 5]
    assert "label 0, 1, 3, 4: num_classes is 6 but there are 2 class names" in capsys.readouterr().out
