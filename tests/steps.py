"""One training step of a trainer, for tests: its images, noise and losses; and equality of states."""
import torch

from p2c.prompts.context import add_noise


def batch_of(trainer, index=0):
    """A training batch with its images as the losses see them."""
    for i, batch in enumerate(trainer.train_loader_x):
        if i == index:
            return batch | {"img": trainer.parse_batch_train(batch)[0]}


def losses_of(trainer, image, label):
    """The losses of a batch in the trainer's present step."""
    return trainer.model.losses(image, label, trainer.model.draw(trainer.step))


def noisy_of(trainer):
    """The prompts with the noise of the trainer's present step."""
    return add_noise(trainer.model.learner(), trainer.model.draw(trainer.step).get("dpd"))


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
