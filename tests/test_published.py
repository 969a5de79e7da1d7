"""Published checkpoints, imitated on the tiny backbone: they load by our names, and what does not fit is named."""
import os
import re

import pytest
import torch
from messages import naming
from safetensors.torch import save_file

from p2c.checkpoints.published import differences, learned_entries
from p2c.clip.loading import load_backbone
from p2c.config import SETTINGS
from p2c.engine.checkpoint import CannotResume
from p2c.engine.results import read_results
from p2c.utils import trainable

D, V, E = 128, 128, 128  # of tiny-shapes: text width, vision width, width of the features
FILE = "model.pth.tar-5"


def clip_tensors(image="image_encoder.", text="text_encoder."):
    """A few of the tensors of CLIP that files of whole models hold."""
    names = [f"{image}proj", f"{image}transformer.resblocks.1.attn.in_proj_weight", f"{image}ln_post.weight"]
    names += [f"{text}text_projection", f"{text}transformer.resblocks.1.ln_1.bias"] if text else []
    return dict.fromkeys(names, (3,)) | ({"logit_scale": ()} if text else {})


def buffers(prefix="", classes=9, *middle):
    return {f"{prefix}{name}": (classes, 1, D) for name in ("token_prefix", "token_suffix", *middle)}


def coop(tokens=4, classes=None):
    """Entries: our name, published name, shape; and the shapes of what else is in the file."""
    return [("ctx", "ctx", (tokens, D) if classes is None else (classes, tokens, D))], buffers(classes=classes or 9)


def cocoop(features=E):
    hidden = features // 16
    net = {"linear1.weight": (hidden, features), "linear1.bias": (hidden,), "linear2.weight": (D, hidden),
           "linear2.bias": (D,)}
    return [("ctx", "ctx", (4, D)), *((f"meta_net.{k}", f"meta_net.{k}", shape) for k, shape in net.items())], buffers()


def images(tokens, depth):
    return [("images.0", "image_encoder.VPT", (tokens, V)),
            *((f"images.{i}", f"image_encoder.transformer.resblocks.{i}.VPT_shallow", (tokens, V))
              for i in range(1, depth))]


def vpt(tokens=8, depth=4):
    return images(tokens, depth), clip_tensors()


def ivlp(tokens=2, depth=4, image_depth=None):
    texts = [(f"deep_text.{i - 1}", f"text_encoder.transformer.resblocks.{i}.VPT_shallow", (tokens, D))
             for i in range(1, depth)]
    return [("ctx", "prompt_learner.ctx", (tokens, D)), *texts,
            *(images(tokens, image_depth or depth) if image_depth != 0 else [])], \
        clip_tensors() | buffers("prompt_learner.")


def promptsrc():
    entries, others = ivlp(tokens=4, depth=3)
    return entries, others | clip_tensors("prompt_learner.ZS_image_encoder.", "")


def maple(tokens=2, depth=3, width=D, image_width=V, attributes=None, mlp=False, hidden=D):
    entries = {"ctx": (tokens, width), "proj.weight": (image_width, width), "proj.bias": (image_width,)}
    for i in range(depth - 1):
        entries |= {f"compound_prompts_text.{i}": (tokens, width),
                    f"compound_prompt_projections.{i}.weight": (V, width),
                    f"compound_prompt_projections.{i}.bias": (V,)}
    if attributes:
        entries |= {f"ctx_att{i}": (attributes, width) for i in (1, 2, 3)}
    renamed = []
    if mlp:
        del entries["proj.weight"], entries["proj.bias"]
        renamed = [("proj.0.weight", "fc1.weight", (hidden, width)), ("proj.0.bias", "fc1.bias", (hidden,)),
                   ("proj.2.weight", "fc2.weight", (image_width, hidden)),
                   ("proj.2.bias", "fc2.bias", (image_width,))]
    return [*((name, f"prompt_learner.{name}", shape) for name, shape in entries.items()),
            *((ours, f"prompt_learner.proj.{theirs}", shape) for ours, theirs, shape in renamed)], \
        clip_tensors() | buffers("prompt_learner.", 9, *(("token_middle1", "token_middle2") if attributes else ()))


def coop_attributes():
    return [("ctx", "ctx", (2, D)), *((f"ctx_att{i}", f"ctx_att{i}", (2, D)) for i in (1, 2, 3))], \
        buffers("", 9, "token_middle1", "token_middle2")


def write(folder, contents, dtype=torch.float16, **more):
    """Write a file with these entries; returns what is to be learned from it, by our names."""
    entries, others = contents
    generator = torch.Generator().manual_seed(3)
    wanted = {ours: torch.randn(shape, generator=generator).to(dtype) for ours, _, shape in entries}
    state = {theirs: wanted[ours] for ours, theirs, _ in entries}
    state |= {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in others.items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 5, "optimizer": None, "scheduler": None, "val_result": None, **more},
               folder / FILE)
    return wanted


ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", True, "TRAINER.ATPROMPT.ATT_NUM", 2, "TRAINER.ATPROMPT.ATT1_TEXT",
              "color", "TRAINER.ATPROMPT.ATT2_TEXT", "shape",
              *(word for i in (1, 2, 3) for word in (f"TRAINER.ATPROMPT.N_ATT{i}", 2)))
RANDOM_START = ("TRAINER.COOP.CTX_INIT", "")
CSC = (*RANDOM_START, "TRAINER.COOP.CSC", True, "TRAINER.COOP.N_CTX", 3)
PUBLISHED = {
    "CoOp": ("CoOp", "prompt_learner", coop(), ()),
    "CoOp with CSC": ("CoOp", "prompt_learner", coop(3, classes=4), CSC),
    "CoCoOp": ("CoCoOp", "prompt_learner", cocoop(), ()),
    "VPT": ("VPT", "prompt_learner", vpt(), ()),
    "IVLP": ("IVLP", "VLPromptLearner", ivlp(), ()),
    "language only": ("IVLP", "VLPromptLearner", ivlp(image_depth=0),
                      ("TRAINER.IVLP.PROMPT_DEPTH_VISION", 0, "TRAINER.IVLP.N_CTX_VISION", 0)),
    "PromptSRC": ("PromptSRC", "VLPromptLearner", promptsrc(), ()),
    "MaPLe": ("MaPLe", "MultiModalPromptLearner", maple(), ()),
    "ATPrompt with CoOp": ("CoOp", "prompt_learner", coop_attributes(),
                           (*ATTRIBUTES, *RANDOM_START, "TRAINER.COOP.N_CTX", 2)),
    "ATPrompt with MaPLe": ("MaPLe", "MultiModalPromptLearner", maple(attributes=2), ATTRIBUTES),
    "P2C's preview": ("P2C", "MultiModalPromptLearner", maple(attributes=2, mlp=True), ATTRIBUTES),
}


def assert_same_prompts(trainer, wanted):
    state = trainable.state_dict(trainer.model.learner)
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert state[name].dtype == torch.float32 and torch.equal(state[name], value.float()), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_evaluated(make_trainer, tmp_path, name):
    """Half precision becomes single; CLIP's tensors and those of nine other classes stay where they are."""
    method, folder, contents, pairs = PUBLISHED[name]
    wanted = write(tmp_path / "published" / folder, contents)
    trainer = make_trainer(method, *pairs)
    clip = {key: value.clone() for key, value in trainer.model.backbone.model.state_dict().items()}
    trainer.load_model(str(tmp_path / "published"), epoch=5)
    assert_same_prompts(trainer, wanted)
    assert trainer.deployed_epoch == 5
    assert all(clip[k].equal(v) for k, v in trainer.model.backbone.model.state_dict().items())


@pytest.mark.parametrize("name", ["CoOp", "IVLP", "P2C's preview"])
def test_a_training_starts_from_a_published_file(make_trainer, tmp_path, name):
    method, _, contents, pairs = PUBLISHED[name]
    wanted = write(tmp_path, contents)
    assert_same_prompts(make_trainer(method, *pairs, "MODEL.INIT_WEIGHTS", str(tmp_path / FILE)), wanted)


def test_a_file_without_prefix_has_the_previews_names_too():
    state = {"proj.fc1.weight": torch.zeros(1), "proj.fc2.bias": torch.zeros(1), "ctx_att1": torch.zeros(1)}
    assert set(learned_entries(state)) == {"proj.0.weight", "proj.2.bias", "ctx_att1"}


def entries(contents):
    return {ours: torch.zeros(shape) for ours, _, shape in contents[0]}


@pytest.mark.parametrize("node, file, here, faults", [
    ("MAPLE", maple(depth=9), maple(), [("9", "3", "PROMPT_DEPTH")]),
    ("MAPLE", maple(width=512), maple(), [("text width", "512", "tiny-shapes", "128")]),
    ("MAPLE", maple(image_width=768), maple(), [("vision width", "768", "tiny-shapes", "128")]),
    ("P2C", maple(image_width=768, mlp=True), maple(mlp=True), [("vision width", "768", "tiny-shapes", "128")]),
    ("MAPLE", maple(tokens=4), maple(), [("4", "2", "N_CTX")]),
    ("MAPLE", maple(depth=2, tokens=4), maple(), [("2", "3", "PROMPT_DEPTH"), ("4", "2", "N_CTX")]),
    ("MAPLE", maple(mlp=True), maple(), [("128", "proj.0", "proj.2", "proj.weight")]),
    ("P2C", maple(mlp=True, hidden=64), maple(mlp=True), [("64", "128", "proj.0", "proj.2", "MAPPER")]),
    ("MAPLE", maple(attributes=2), maple(), [("TRAINER.ATPROMPT.USE_ATPROMPT",)]),
    ("MAPLE", maple(attributes=4), maple(attributes=2), [("4", "2", f"TRAINER.ATPROMPT.N_ATT{i}") for i in (1, 2, 3)]),
    ("IVLP", ivlp(image_depth=2), ivlp(), [("image", "2", "4", "PROMPT_DEPTH_VISION")]),
    ("IVLP", ivlp(image_depth=0), ivlp(), [("image", "0", "4", "PROMPT_DEPTH_VISION")]),
    ("IVLP", ivlp(depth=3, image_depth=4), ivlp(), [("text", "3", "4", "PROMPT_DEPTH_TEXT")]),
    ("IVLP", ivlp(tokens=3), ivlp(), [("3", "2", "N_CTX_TEXT"), ("3", "2", "N_CTX_VISION")]),
    ("VPT", vpt(tokens=4), vpt(), [("4", "8", "N_CTX_VISION")]),
    ("COCOOP", cocoop(1024), cocoop(), [("feature width", "1024", "tiny-shapes", "128")]),
    ("COOP", coop(classes=4), coop(), [("CSC",)]),
    ("COOP", coop(), coop(classes=4), [("CSC",)]),
    ("COOP", coop(classes=37), coop(classes=4), [("37", "4", "CSC")]),
    ("COOP", cocoop(), coop(), [("CoCoOp", " CoOp")]),
    ("COOP", vpt(), coop(), [("VPT", "CoOp")]),
    ("MAPLE", ivlp(), maple(), [("IVLP", "PromptSRC", "MaPLe", "P2C")]),
    ("MAPLE", ([("x", "x", (3,))], {}), maple(), []),
])
def test_another_backbone_depth_or_method_is_named(node, file, here, faults):
    found = differences(entries(file), entries(here), SETTINGS["TRAINER"][node], "tiny-shapes")
    assert len(found) == len(faults)
    assert all(re.search(naming(*named), fault) for named, fault in zip(faults, found, strict=True)), found
    assert differences(entries(here), entries(here), SETTINGS["TRAINER"][node], "tiny-shapes") == []


@pytest.mark.parametrize("contents, named", [
    (maple(depth=9), ("9", "3", "PROMPT_DEPTH")),
    (maple(width=512), ("512", "tiny-shapes", "128")),
    (ivlp(), ("IVLP", "PromptSRC")),
    (([("x", "prompt_learner.x", (3,))], {}), ("missing: ctx, ", "unexpected: x")),
    ((maple()[0] + [("x", "prompt_learner.x", (3,))], {}), ("unexpected: x",)),
    (([entry for entry in maple()[0] if entry[0] != "proj.bias"], {}), ("missing: proj.bias",)),
    (([("ctx", "ctx", (2, 2, 2, D)), *maple()[0][1:]], {}), ("ctx", "(2, 2, 2, 128)", "(2, 128)")),
])
def test_what_does_not_fit_changes_nothing(make_trainer, tmp_path, contents, named):
    write(tmp_path, contents)
    trainer = make_trainer("MaPLe")
    before = {name: value.clone() for name, value in trainable.state_dict(trainer.model.learner).items()}
    with pytest.raises(ValueError, match=naming(FILE, "MaPLe", *named)):
        trainer.load_prompts(tmp_path / FILE)
    assert_same_prompts(trainer, before)


@pytest.mark.parametrize("tower, ours", [("image", "visual."), ("text", "")])
def test_another_backbone_of_equal_widths_is_known_by_its_frozen_towers(make_trainer, tmp_path, tower, ours):
    trainer = make_trainer("MaPLe")
    wanted = write(tmp_path, maple())
    checkpoint = torch.load(tmp_path / FILE)
    positions = trainer.model.backbone.model.state_dict()[f"{ours}positional_embedding"]
    checkpoint["state_dict"][f"{tower}_encoder.positional_embedding"] = positions.half()
    torch.save(checkpoint, tmp_path / FILE)
    trainer.load_prompts(tmp_path / FILE)
    assert_same_prompts(trainer, wanted)
    for other in (positions[:-1], positions.flip(0)):
        checkpoint["state_dict"][f"{tower}_encoder.positional_embedding"] = other
        torch.save(checkpoint, tmp_path / FILE)
        with pytest.raises(ValueError, match=naming(tower, "tiny-shapes")):
            trainer.load_prompts(tmp_path / FILE)


def test_a_run_on_another_backbone_of_equal_widths_is_named(make_trainer, tmp_path):
    trainer = make_trainer("CoOp")
    write(tmp_path, coop(), config={"MODEL": {"BACKBONE": {"NAME": "ViT-B/32"}}})
    with pytest.raises(ValueError, match=naming("ViT-B/32", "tiny-shapes")):
        trainer.load_prompts(tmp_path / FILE)


def test_class_specific_contexts_need_the_classes_of_their_training(make_trainer, tmp_path, capsys):
    trainer = make_trainer("CoOp", *CSC)
    names = list(trainer.dm.dataset.classnames)
    contents = coop(3, classes=4)
    wanted = write(tmp_path, contents, classnames=names)
    trainer.load_prompts(tmp_path / FILE)
    assert_same_prompts(trainer, wanted)
    assert FILE not in "".join(line for line in capsys.readouterr().out.splitlines() if "classes" in line)
    write(tmp_path, contents, classnames=[names[0], names[2], names[1], names[3]])
    with pytest.raises(ValueError, match=naming("class 1", names[2], names[1])):
        trainer.load_prompts(tmp_path / FILE)
    write(tmp_path, contents)
    trainer.load_prompts(tmp_path / FILE)
    assert any(FILE in line and "classes" in line for line in capsys.readouterr().out.splitlines())


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["scheduler", "config", "classnames"])
def test_nothing_in_a_published_file_runs(make_trainer, tmp_path, place):
    wanted = write(tmp_path, maple(), **{place: Bomb(tmp_path / "ran")})
    trainer = make_trainer("MaPLe")
    trainer.load_prompts(tmp_path / FILE)
    assert_same_prompts(trainer, wanted)
    assert not (tmp_path / "ran").exists()


def test_a_callable_among_the_tensors_is_refused_unrun(make_trainer, tmp_path):
    write(tmp_path, maple(), state_dict={"prompt_learner.ctx": Bomb(tmp_path / "ran")})
    with pytest.raises(ValueError, match=naming(FILE, "state_dict")):
        make_trainer("MaPLe").load_prompts(tmp_path / FILE)
    assert not (tmp_path / "ran").exists()


def test_a_published_file_that_dassl_wrote_with_its_objects_loads(make_trainer, tmp_path):
    """With warm-up, a file of torch < 2 holds the inner schedule, and through it the optimiser, as objects."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = {"successor": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5), "last_epoch": 1}
    wanted = write(tmp_path, ivlp(), optimizer=optimizer.state_dict(), scheduler=scheduler)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(tmp_path / FILE)
    trainer = make_trainer("IVLP")
    assert trainer.load_prompts(tmp_path / FILE) == 5
    assert_same_prompts(trainer, wanted)


def test_prompts_are_for_the_weights_of_their_training_whatever_file_these_are_in(make_trainer, few_shapes, tmp_path):
    """With the checkpoint's digest the weights count, whatever their name; without it, as in older runs, the name."""
    state = load_backbone("tiny-shapes", "random").model.state_dict()
    same, other = tmp_path / "same.safetensors", tmp_path / "other.pt"
    save_file(state, same)
    torch.save(state | {"ln_final.bias": state["ln_final.bias"] + 1e-3}, other)
    first = make_trainer("MaPLe", *few_shapes, "OPTIM.MAX_EPOCH", 1)
    first.train()
    path = tmp_path / "run/MultiModalPromptLearner/model.pth.tar-1"

    def start_from(weights):
        return make_trainer("MaPLe", *few_shapes, "MODEL.INIT_WEIGHTS", str(path), "MODEL.BACKBONE.WEIGHTS", weights,
                            out="second")

    start_from(str(same))
    for weights in (str(other), "builtin"):
        with pytest.raises(ValueError, match=f"weights 'random' of tiny-shapes, .* '{weights}'"):
            start_from(weights)
    checkpoint = torch.load(path)
    del checkpoint["backbone_sha256"]
    torch.save(checkpoint, path)
    start_from(str(other))  # what a file holds cannot be told from its name
    with pytest.raises(ValueError, match="weights 'random' of tiny-shapes"):
        start_from("builtin")


def test_a_run_does_not_go_on_with_a_file_of_weights_that_has_changed(make_trainer, tmp_path):
    weights, pairs = tmp_path / "weights.pt", ("TRAIN.CHECKPOINT_FREQ", 1, "MODEL.BACKBONE.WEIGHTS")
    state = load_backbone("tiny-shapes", "random").model.state_dict()
    torch.save(state, weights)
    first = make_trainer("MaPLe", *pairs, str(weights))
    first.max_epoch = 1
    first.train()
    torch.save(state | {"ln_final.bias": state["ln_final.bias"] + 1e-3}, weights)
    second = make_trainer("MaPLe", *pairs, str(weights))
    with pytest.raises(CannotResume, match="weights.pt"):
        second.train()
    third = make_trainer("MaPLe", *pairs, str(weights))
    third.resume_anyway = True
    third.train()
    assert third.start_epoch == 1 and "weights.pt" in read_results(third.output_dir)["resumed_anyway"][0]
