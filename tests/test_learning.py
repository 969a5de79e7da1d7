"""Learning quality on built-in data: prompt learning must learn. Nothing is asserted of P2C against MaPLe."""
import pytest

from p2c.cli import train
from p2c.engine.results import read_results


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def base_accuracy(trainer, data, out, *words):
    status = train.run(train.parse_args([
        "--root", str(data), "--seed", "1", "--trainer", trainer, "--output-dir", str(out),
        "--dataset-config-file", "configs/datasets/shapes.yaml",
        "--config-file", f"configs/trainers/{trainer}/tiny_shapes.yaml", *words,
        "DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base", "USE_CUDA", "False"]))
    assert status == train.FINISHED
    return read_results(str(out))["metrics"]["accuracy"]


@pytest.fixture(scope="module")
def zero_shot(data, tmp_path_factory):
    return base_accuracy("ZeroshotCLIP", data, tmp_path_factory.mktemp("zero"), "--eval-only")


def test_maple_gains_ten_points_on_the_base_classes_of_shapes(data, tmp_path, zero_shot):
    assert base_accuracy("MaPLe", data, tmp_path / "maple") >= zero_shot + 10


def test_p2c_learns_the_base_classes_too(data, tmp_path, zero_shot):
    assert base_accuracy("P2C", data, tmp_path / "p2c") > zero_shot
