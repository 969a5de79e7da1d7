"""Loading a frozen CLIP by name or file: OpenAI's archive, state dicts, safetensors, the built-in backbone."""
import argparse
import copy
import hashlib
import logging
import re

import numpy as np
import open_clip
import pytest
import torch
from clip_files import save_openai_archive
from messages import naming
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from p2c.clip import loading
from p2c.clip.loading import CLIP_NAMES, fold_quick_gelu, load_backbone, read_state_dict
from p2c.clip.precision import PRECISIONS, Precision


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small architecture of open_clip's under a name of its own, so that files of real form stay small."""
    import json

    folder = tmp_path_factory.mktemp("models")
    (folder / "small-clip.json").write_text(json.dumps({
        "embed_dim": 16, "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}}))
    open_clip.add_model_config(folder)
    return open_clip.create_model("small-clip")


@pytest.fixture
def known(monkeypatch):
    """known(path): have a file be OpenAI's own of any model; gives what open_clip says of it."""
    def make(path):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        source = {"url": f"https://host/{digest}/{path.name}", "quick_gelu": True}
        monkeypatch.setattr(loading, "get_pretrained_cfg", lambda model, tag: source)
        return source
    return make


def write(model, path, form):
    if form == "archive":
        save_openai_archive(model.half().float(), path)
    elif form == "safetensors":
        save_file(model.state_dict(), path)
    else:
        state = model.state_dict()
        torch.save(state if form == "bare" else {"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)


@pytest.mark.parametrize("form", ["archive", "bare", "nested", "safetensors"])
def test_weights_are_read_from_every_form(small, tmp_path, known, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    write(small, path, form)
    if form == "archive":
        known(path)
    clip = load_backbone("small-clip", str(path))
    expected = copy.deepcopy(small)
    fold_quick_gelu(expected)
    expected = expected.state_dict()
    for key, value in clip.model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[key]), key
    assert clip.image_size == (32, 32) and clip.pixel_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert clip.token_std == pytest.approx(small.token_embedding.weight.double().std(correction=0).item())


@torch.no_grad()
def test_quick_gelu_is_folded_into_the_weights(small):
    whole, folded = (copy.deepcopy(small).double().eval() for _ in range(2))
    fold_quick_gelu(folded)
    assert not any(isinstance(module, QuickGELU) for module in folded.modules())
    images, texts = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.randint(1, 49408, (2, 77))
    assert torch.allclose(folded.encode_image(images), whole.encode_image(images), rtol=1e-12, atol=1e-12)
    assert torch.allclose(folded.encode_text(texts), whole.encode_text(texts), rtol=1e-12, atol=1e-12)


def test_with_autocast_the_matrices_of_the_blocks_are_in_half_already(small):
    model = load_backbone("small-clip", "random", PRECISIONS["amp"]).model
    half = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16}
    blocks = {name for name, _ in model.named_parameters() if ".attn." in name or ".mlp." in name}
    assert half == blocks


def test_loaded_clip_is_frozen_and_in_evaluation_mode(small, tmp_path):
    clip = load_backbone("small-clip", "random")
    assert not clip.model.training and not any(p.requires_grad for p in clip.model.parameters())


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(small):
    state = torch.random.get_rng_state()
    first, second = load_backbone("small-clip", "random"), load_backbone("small-clip", "random")
    assert torch.equal(first.model.visual.proj, second.model.visual.proj)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_low_precision_keeps_the_embeddings_exact(small):
    exact = load_backbone("small-clip", "random")
    half = load_backbone("small-clip", "random", PRECISIONS["bf16"])
    assert half.model.visual.proj.dtype == torch.bfloat16
    assert torch.equal(half.model.token_embedding.weight, exact.model.token_embedding.weight)
    assert half.logit_scale == exact.logit_scale
    double = load_backbone("small-clip", "random", Precision(torch.float64))
    assert double.model.token_embedding.weight.dtype == torch.float64


@pytest.mark.parametrize("name", sorted(CLIP_NAMES))
def test_clips_names_mean_quick_gelu(name):
    assert open_clip.get_model_config(CLIP_NAMES[name])["quick_gelu"] is True


@pytest.mark.parametrize("name, tag, other", [("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
                                              ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "ViT-B-16")])
def test_weights_of_another_activation_are_refused_naming_the_right_model(name, tag, other, monkeypatch):
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: [tag])
    monkeypatch.setattr(loading, "get_pretrained_cfg", lambda model, tag: {"quick_gelu": tag == "openai"})
    with pytest.raises(ValueError, match=naming("GELU", name, f"MODEL.BACKBONE.NAME to {other}")):
        load_backbone(name, tag)


def test_another_archive_than_openais_is_refused_unread_with_how_to_convert_it(small, tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    save_openai_archive(small, path)
    command = f"torch.save(torch.jit.load({str(path)!r}).state_dict(), FILE)"
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=re.escape(command)) as refused:
        patch.setattr(torch.jit, "load", None)
        load_backbone("small-clip", str(path))
    message = str(refused.value)
    assert str(path) in message and "TorchScript" in message and "\n" not in message
    exec(command, {"torch": torch, "FILE": tmp_path / "converted.pt"})
    clip = load_backbone("small-clip", str(tmp_path / "converted.pt"))
    torch.testing.assert_close(clip.model.visual.proj, small.visual.proj.half().float())


def test_openais_archive_is_refused_by_a_model_with_plain_gelu_and_by_one_of_another_size(small, tmp_path, known):
    path = tmp_path / "ViT-B-16.pt"
    save_openai_archive(small, path)
    known(path)
    with pytest.raises(ValueError, match=naming("quick-GELU", "to ViT-B-16-quickgelu")):
        load_backbone("ViT-B-16", str(path))
    with pytest.raises(ValueError, match="ViT-B/32"):
        load_backbone("ViT-B/32", str(path))


def test_openai_weights_come_from_clips_own_cache_and_are_checked(small, tmp_path, monkeypatch, known):
    cached = tmp_path / "small.pt"
    save_openai_archive(small, cached)
    source = known(cached)
    digest = source["url"].split("/")[-2]
    monkeypatch.setattr(loading, "CLIP_CACHE", tmp_path)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["openai"])
    clip = load_backbone("small-clip", "openai")
    torch.testing.assert_close(clip.model.visual.proj, small.visual.proj.half().float())
    source["url"] = "https://host/0123/small.pt"
    with pytest.raises(ValueError, match=naming("small.pt", digest, "0123")):
        load_backbone("small-clip", "openai")


def test_unreachable_openai_weights_are_one_clear_error(small, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(loading, "CLIP_CACHE", tmp_path)
    monkeypatch.setattr(open_clip, "create_model", refuse)
    with pytest.raises(FileNotFoundError, match=naming("'openai'", "ViT-B/16", "no network", "ViT-B-16.pt")):
        load_backbone("ViT-B/16", "openai")


def test_a_failed_fetch_shows_no_attempts_and_the_whole_cause(small, tmp_path, monkeypatch, caplog):
    attempts = logging.getLogger("huggingface_hub.utils._http")
    cause = ConnectionError("no network. " * 30)

    def refuse(*args, **kwargs):
        for _ in range(5):
            attempts.warning("Retrying in 1s")
            logging.error("Retrying failed")
        raise FileNotFoundError("Failed to download file") from cause

    monkeypatch.setattr(loading, "CLIP_CACHE", tmp_path)
    monkeypatch.setattr(open_clip, "create_model", refuse)
    with pytest.raises(FileNotFoundError, match=naming("'openai'", str(cause).strip())):
        load_backbone("ViT-B/16", "openai")
    assert "Retrying" not in caplog.text and attempts.isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("content", [b"<html>not weights</html>", b""])
def test_files_that_are_no_weights_are_refused_by_name(small, tmp_path, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=naming(path, "cannot be read")):
        load_backbone("small-clip", str(path))


def test_a_pickle_with_code_is_refused_and_runs_nothing(small, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="cannot be read"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


def test_a_training_checkpoint_with_other_objects_says_which_and_how_to_save_its_state_dict(small, tmp_path):
    path = tmp_path / "epoch_3.pt"
    torch.save({"state_dict": small.state_dict(), "args": argparse.Namespace(lr=1)}, path)
    command = f"torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], FILE)"
    with pytest.raises(ValueError, match=naming(path, "argparse.Namespace", command)):
        load_backbone("small-clip", str(path))
    exec(command, {"torch": torch, "FILE": tmp_path / "weights.pt"})
    assert torch.equal(load_backbone("small-clip", str(tmp_path / "weights.pt")).model.visual.proj, small.visual.proj)


def test_numbers_and_arrays_of_numpy_in_a_checkpoint_are_harmless(small, tmp_path):
    path = tmp_path / "epoch_3.pt"
    torch.save({"state_dict": small.state_dict(), "loss": np.float64(0.5), "rng": np.arange(3), "name": "x"}, path)
    assert torch.equal(load_backbone("small-clip", str(path)).model.visual.proj, small.visual.proj)
    assert np.dtype("float64").byteorder == "="


def test_a_checkpoint_with_its_weights_under_another_name_says_what_it_holds(small, tmp_path):
    path = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "model": small.state_dict()}, path)
    command = f"torch.save(torch.load({str(path)!r})['model'], FILE)"
    with pytest.raises(ValueError, match=naming(path, "'epoch', 'model'", command)):
        load_backbone("small-clip", str(path))
    for content, held in (({"epoch": 3}, "'epoch'"), ([1, 2], "list"), ({}, "nothing")):
        torch.save(content, path)
        with pytest.raises(ValueError, match=naming(path, held, "give CLIP's weights")):
            load_backbone("small-clip", str(path))


@pytest.mark.parametrize("key, whose", [("vision_model.embeddings.class_embedding", "transformers"),
                                        ("visual.trunk.cls_token", "timm"),
                                        ("prompt_learner.ctx", "--model-dir")])
def test_weights_in_a_foreign_layout_say_whose_it_is(small, tmp_path, key, whose):
    path = tmp_path / "model.safetensors"
    save_file({"logit_scale": torch.zeros(1), key: torch.zeros(4)}, path)
    with pytest.raises(ValueError, match=naming(path, whose, "MODEL.BACKBONE.WEIGHTS")) as refused:
        load_backbone("small-clip", str(path))
    assert "MODEL.BACKBONE.NAME" not in str(refused.value)


def test_a_tag_of_the_sibling_architecture_says_which_name_has_it():
    with pytest.raises(FileNotFoundError, match=naming("'laion400m_e32'", "ViT-B/16", "NAME ViT-B-16 has")):
        load_backbone("ViT-B/16", "laion400m_e32")
    with pytest.raises(FileNotFoundError) as refused:
        load_backbone("ViT-B/16", "no_such_tag")
    assert "MODEL.BACKBONE.NAME" not in str(refused.value)


def test_weights_of_another_architecture_are_refused_with_what_differs(small, tmp_path):
    path = tmp_path / "w.pt"
    write(small, path, "bare")
    with pytest.raises(ValueError, match=naming("w.pt", "ViT-B/32", "MODEL.BACKBONE.NAME")):
        load_backbone("ViT-B/32", str(path))


def test_built_in_weights_belong_to_the_built_in_backbone():
    with pytest.raises(ValueError, match=naming("tiny-shapes", "builtin")):
        load_backbone("ViT-B/16", "builtin")
    with pytest.raises(FileNotFoundError, match=naming("builtin", "random")):
        load_backbone("tiny-shapes", "openai")


def test_a_tokenizer_other_than_clips_is_refused():
    with pytest.raises(ValueError, match="other than CLIP.s"):
        load_backbone("ViT-B-16-SigLIP", "random")


def test_image_towers_other_than_vits_serve_methods_that_prompt_the_text_only():
    from p2c.clip.vision import ImageTower

    clip = load_backbone("RN50", "random")
    tower = ImageTower(clip.model)
    image = torch.randn(1, 3, *clip.image_size)
    assert torch.equal(tower.encode(image), clip.model.encode_image(image))
    with pytest.raises(ValueError, match="VisionTransformer"):
        tower.require_prompts()


def test_built_in_backbone_names_the_word_it_has_no_row_for():
    clip = load_backbone("tiny-shapes", "builtin")
    assert clip.tokenize("a photo of a red circle.")
    with pytest.raises(ValueError, match=naming("tiny-shapes", "'zebra'", "'a photo of a zebra'")):
        clip.tokenize("a photo of a zebra")
    rows = clip.model.token_embedding.weight[sorted(clip.stored_ids)].double()
    assert clip.token_std == pytest.approx(rows.std(correction=0).item())


def test_towers_run_without_kernels_that_are_coarser_than_their_precision_or_known_to_be_wrong():
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cudnn.allow_tf32 = True
    load_backbone("tiny-shapes", "random")
    assert not torch.backends.cuda.cudnn_sdp_enabled() and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
