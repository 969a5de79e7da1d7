"""Compare training and tests on a GPU with the CPU's; skipped without one. benchmarks/step.py measures speed."""
import importlib
import math

import pytest
import torch
from steps import losses_of

from p2c import registry
from p2c.engine import optim
from p2c.trainers.graph import GraphedStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TRAINED = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "P2C")
PRECISIONS = {  # relative error that loss and gradients may have, against fp32 on the CPU
    "fp32": (1e-5, 1e-3), "amp": (2e-3, 3e-2), "fp16": (5e-3, 5e-2), "bf16": (3e-2, 3e-1)}
ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", True, "TRAINER.ATPROMPT.ATT_NUM", 1,
              "TRAINER.ATPROMPT.ATT1_TEXT", "color")


@pytest.fixture(autouse=True)
def as_before():
    """Restore the process's GPU settings."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def on_gpu(make_trainer):
    """on_gpu(name, precision, key, value, ...): a trainer on the GPU, before its first step."""
    def make(name, precision, *pairs, **options):
        trainer = make_trainer(name, "USE_CUDA", True, f"TRAINER.{name.upper()}.PREC", precision, *pairs, **options)
        trainer.num_batches = 1000  # no step ends an epoch
        return trainer
    return make


def train_steps(trainer, count):
    """The losses of so many steps over the trainer's images, again and again."""
    losses = []
    while len(losses) < count:
        for batch in trainer.train_loader_x:
            losses.append(trainer.forward_backward(batch)["loss"])
            trainer.batch_idx += 1
    return torch.stack(losses[:count]).tolist()


@pytest.mark.parametrize("name", ["MaPLe", "P2C"])
def test_half_precision_trains_on_after_a_first_step_that_overflows(on_gpu, few_shapes, monkeypatch, name):
    losses = []
    for fused in (False, True):
        monkeypatch.setattr(optim, "FUSED", optim.FUSED if fused else ())
        torch.full((1 << 24,), math.nan, device="cuda")  # freed at once: new memory may hold this
        trainer = on_gpu(name, "fp16", *few_shapes, "MODEL.BACKBONE.WEIGHTS", "builtin", out=f"fused{fused}")
        trainer.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)  # overflows whatever the loss is
        trainer.skipped.scaler = trainer.scaler
        losses.append(train_steps(trainer, 48))
        assert 10 < trainer.skipped_steps < 40
        monkeypatch.undo()
    assert all(map(math.isfinite, losses[1]))
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)


def assert_graph_trains_alike(on_gpu, name, precision, *pairs):
    losses = []
    for wish in ("off", "auto"):
        trainer = on_gpu(name, precision, "TRAIN.CUDA_GRAPH", wish, *pairs, out=wish)
        losses.append(train_steps(trainer, 12))
        assert isinstance(trainer.launch, GraphedStep) == (wish == "auto")
    assert losses[1] == pytest.approx(losses[0], rel=PRECISIONS[precision][0])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", TRAINED)
def test_a_graph_trains_as_eager_steps_do(on_gpu, name, precision):
    assert_graph_trains_alike(on_gpu, name, precision)


@pytest.mark.parametrize("pairs", [
    ("OPTIM.NAME", "adam"), ("OPTIM.NAME", "adamw"), ("TRAIN.TEXT_MEMORY", 1e-6), ATTRIBUTES])
def test_a_graph_with_other_settings_trains_as_eager_steps_do(on_gpu, pairs):
    assert_graph_trains_alike(on_gpu, "P2C", "fp16", *pairs)


@pytest.mark.parametrize("precision", ["fp16", "amp", "bf16", "fp32"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_run_begun_on_the_cpu_goes_on_on_the_gpu(make_trainer, precision, optimiser):
    pairs = ("TRAINER.P2C.PREC", precision, "OPTIM.NAME", optimiser, "TRAIN.CHECKPOINT_FREQ", 1)
    first = make_trainer("P2C", *pairs)
    first.max_epoch = 1
    first.train()
    second = make_trainer("P2C", "USE_CUDA", True, *pairs)
    second.train()
    assert second.start_epoch == 1 and second.device.type == "cuda" and second.optim.param_groups[0]["fused"]
    assert all(parameter.isfinite().all() for parameter in second.model.learner.parameters())


@pytest.mark.parametrize("precision", ["fp16", "amp", "bf16", "fp32"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("name, pairs", [*((name, ()) for name in TRAINED), ("P2C", ATTRIBUTES)])
def test_a_step_does_not_wait_for_the_gpu(on_gpu, name, pairs, optimiser, precision):
    trainer = on_gpu(name, precision, "OPTIM.NAME", optimiser, *pairs)
    trainer.before_train()
    batch = {key: value.pin_memory() if torch.is_tensor(value) else value
             for key, value in next(iter(trainer.train_loader_x)).items()}
    trainer.forward_backward(batch)
    torch.cuda.set_sync_debug_mode("error")
    for trainer.batch_idx in (1, 2):
        trainer.forward_backward(batch)


def loss_and_gradients(trainer):
    """The loss of the first batch, and its gradients in one vector, on the CPU."""
    image, label = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    loss = sum(losses_of(trainer, image, label).values())
    loss.backward()
    gradients = [parameter.grad for parameter in trainer.model.learner.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat([gradient.flatten().double().cpu() for gradient in gradients])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", TRAINED)
def test_losses_and_gradients_are_the_cpus(make_trainer, on_gpu, name, precision):
    expected = make_trainer(name, out="cpu")
    loss, gradients = loss_and_gradients(expected)
    found_loss, found = loss_and_gradients(on_gpu(name, precision))
    tolerance, gradient_tolerance = PRECISIONS[precision]
    assert found_loss == pytest.approx(loss, rel=tolerance)
    assert (found - gradients).norm() <= gradient_tolerance * gradients.norm()


def test_deterministic_trainings_are_bit_equal(start, pets, tmp_path):
    """Each in a process of its own, since what DETERMINISTIC turns on stays on in a process."""
    prompts = []
    for run in ("one", "two"):
        done = start("train.py", "--trainer", "P2C", "--root", pets, "--seed", 1, "--output-dir", tmp_path / run,
                     "--dataset-config-file", "configs/datasets/oxford_pets.yaml",
                     "--config-file", "configs/trainers/P2C/tiny_shapes.yaml", "DATASET.CHECKS", "partial",
                     "MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", 2, "TRAINER.P2C.PREC", "fp16",
                     "TRAIN.DETERMINISTIC", True)
        assert done.returncode == 0, done.stderr
        prompts.append(torch.load(tmp_path / run / "MultiModalPromptLearner/model.pth.tar-2")["state_dict"])
    assert prompts[0].keys() == prompts[1].keys()
    assert all(prompts[0][key].equal(prompts[1][key]) for key in prompts[0])


def test_the_memory_of_a_thousand_class_texts_is_what_was_allowed(monkeypatch):
    """ViT-B/16 in fp16, batch 4; the images' part is taken from a step with 2 classes."""
    monkeypatch.syspath_prepend("benchmarks")
    common, module = (importlib.import_module(name) for name in ("common", registry.TRAINERS["P2C"]))

    def activations(classes, *pairs):
        trainer = common.build(module.P2C, common.Setting(classes, 4, "fp16", "cuda"),
                               "TRAIN.CUDA_GRAPH", "off", *pairs)
        image, label = common.made_up(trainer, 4, classes)
        trainer.forward_backward({"img": image, "label": label})
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trainer.forward_backward({"img": image, "label": label})
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    images, allowed = activations(2), 0.3 * 2**30
    assert activations(1000) > images + 2 * allowed
    assert activations(1000, "TRAIN.TEXT_MEMORY", 0.3) < images + 1.3 * allowed
