"""Images as bytes: the same pixels to the bit, for our trainers alone, where floats are only normalised."""
import numpy as np
import pytest
import torch
from PIL import Image
from steps import assert_same_state
from torchvision import transforms as T

from p2c.framework import build_transform
from p2c.trainers import base
from p2c.utils.pixels import Normalization, as_bytes

CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CPU = torch.device("cpu")
EVERY_VALUE = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))


@pytest.mark.parametrize("statistics", [CLIP, ([0.5] * 3, [0.25] * 3), None])
def test_bytes_become_the_floats_of_torchvision_to_the_bit(statistics):
    steps = [T.ToTensor()] + ([T.Normalize(*statistics)] if statistics else [])
    transform = T.Compose([T.RandomHorizontalFlip(1.0), *steps])
    normalization = Normalization(statistics, CPU)
    images = as_bytes(transform, normalization)(EVERY_VALUE)
    assert images.dtype == torch.uint8 and images.shape == (3, 16, 16) and images.is_contiguous()
    floats = normalization(images[None])
    assert floats.dtype == torch.float32 and floats.equal(transform(EVERY_VALUE)[None])


def test_only_the_configured_normalisation_moves_to_the_device(make_cfg):
    cfg = make_cfg()
    normalization = Normalization((cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD), CPU)
    for choices, moves in [
        (["normalize"], True), (["random_resized_crop", "colorjitter", "normalize"], True), ([], False),
        (["cutout", "normalize"], False), (["normalize", "gaussian_noise"], False),
        (["normalize", "instance_norm"], False),
    ]:
        transform = build_transform(cfg, choices=choices)
        assert (as_bytes(transform, normalization) is not transform) == moves, choices
    for other in (None, [T.ToTensor()], T.ToTensor(), T.Compose([T.PILToTensor()]),
                  T.Compose([T.ToTensor(), T.Normalize(*CLIP)])):
        assert as_bytes(other, normalization) is other


def dtypes(trainer):
    return [next(iter(loader))["img"].dtype for loader in (trainer.train_loader_x, trainer.val_loader,
                                                           trainer.test_loader)]


def test_our_trainers_take_bytes_and_other_peoples_floats(make_trainer, tiny_trainer, capsys):
    assert dtypes(make_trainer("MaPLe")) == [torch.uint8] * 3
    assert "+ to torch tensor of range [0, 1]\n+ normalization (mean=[0.5, 0.5, 0.5]" in capsys.readouterr().out
    assert dtypes(make_trainer("MaPLe", "INPUT.TRANSFORMS", ["random_flip"])) == [torch.uint8] * 3
    assert dtypes(make_trainer("MaPLe", "INPUT.TRANSFORMS", ["cutout", "normalize"])) == \
        [torch.float32, torch.uint8, torch.uint8]
    assert dtypes(make_trainer("MaPLe", "INPUT.TRANSFORMS", ["instance_norm"])) == [torch.float32] * 3
    assert dtypes(make_trainer("MaPLe", "DATALOADER.RETURN_IMG0", True)) == [torch.float32] * 3
    assert next(iter(tiny_trainer().train_loader_x))["img"].dtype == torch.float32
    views = next(iter(make_trainer("ZeroshotCLIP", "DATALOADER.K_TRANSFORMS", 2).train_loader_x))["img"]
    assert [view.dtype for view in views] == [torch.float32] * 2


@pytest.mark.parametrize("transforms", [
    ["random_resized_crop", "random_flip", "normalize"], ["random_flip"], ["cutout", "normalize"]], ids=" ".join)
def test_training_and_predictions_are_those_of_float_batches(make_trainer, monkeypatch, transforms):
    options = "P2C", "INPUT.TRANSFORMS", transforms
    ours = make_trainer(*options, out="ours")
    monkeypatch.setattr(base, "as_bytes", lambda transform, normalization: transform)
    floats = make_trainer(*options, out="floats")
    assert dtypes(floats) == [torch.float32] * 3
    for trainer in (ours, floats):
        trainer.train()
    assert_same_state(ours.model.learner.state_dict(), floats.model.learner.state_dict())
    pairs = zip(ours.test_loader, floats.test_loader, strict=True)
    for (image, label), (other, same) in ((ours.parse_batch_test(a), floats.parse_batch_test(b)) for a, b in pairs):
        assert image.equal(other) and label.equal(same)
        assert ours.model_inference(image).equal(floats.model_inference(other))
    assert ours.results == floats.results


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_leave_our_trainers_as_they_were(make_trainer, workers):
    plain = make_trainer("P2C", out="plain")
    other = make_trainer("P2C", "DATALOADER.NUM_WORKERS", workers, out="other")
    for trainer in (plain, other):
        trainer.train()
    assert_same_state(plain.model.learner.state_dict(), other.model.learner.state_dict())


def test_bytes_that_nobody_normalised_are_noticed(make_trainer):
    trainer = make_trainer("MaPLe")
    with pytest.raises(AssertionError, match="uint8"):
        trainer.model_inference(next(iter(trainer.test_loader))["img"])
