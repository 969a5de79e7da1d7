"""The words that learned text is near to: known words are found, the ranking is a plain loop's, any trainer's run."""
import csv
import math
import re

import pytest
import torch

from p2c.cli import interpret
from p2c.engine.checkpoint import load_checkpoint
from p2c.inference.words import Vocabulary, learned_text

WORDS = ["a", "photo", "of", "a"]  # what the tiny configurations start their contexts with
ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", True, "TRAINER.ATPROMPT.N_ATT1", 2, "TRAINER.ATPROMPT.N_ATT2", 1)
# The parts of the text by layer, with the number of their tokens.
TEXTS = {
    "CoOp": {("context", 0): 4},
    "CoCoOp": {("context", 0): 4},
    "IVLP": {("context", layer): 2 for layer in range(4)},
    "MaPLe": {("context", layer): 2 for layer in range(3)},
    "PromptSRC": {("context", layer): 4 for layer in range(3)},
    "P2C": {("context", layer): 2 for layer in range(3)},
}


def nearest_words(trainer, top=1):
    """Part, layer and class of each place, with the nearest words of its tokens."""
    vocabulary = Vocabulary(trainer.model.backbone)
    return [((place.part, place.layer, place.classname), vocabulary.nearest(place.tokens, top))
            for place in learned_text(trainer.model, "CoOp")]


def embedded(trainer, text):
    return trainer.model.backbone.token_embedding(trainer.model.backbone.tokenize(text))


@pytest.mark.parametrize("name", TEXTS)
def test_contexts_that_are_words_are_read_as_these_words(make_trainer, name):
    trainer = make_trainer(name)
    assert {(part, layer): len(words) for (part, layer, _), words in nearest_words(trainer)} == TEXTS[name]
    first, *deeper = trainer.model.learner().deep_text or [None]
    if deeper:
        first.data = embedded(trainer, "dog cat bird fish")[:len(first)]
    found = {(part, layer): words for (part, layer, _), words in nearest_words(trainer)}
    for word, nearest in zip(WORDS, found["context", 0], strict=False):
        assert nearest == [(word, 0.0)]
    for word, nearest in zip(["dog", "cat", "bird", "fish"], found.get(("context", 1), []), strict=False):
        assert nearest == [(word, 0.0)]


@pytest.mark.parametrize("name", ["CoOp", "MaPLe", "P2C"])
def test_attributes_in_use_are_read_before_the_context(make_trainer, name):
    trainer = make_trainer(name, *ATTRIBUTES)  # OxfordPets has two
    trainer.model.learner.ctx_att2.data = embedded(trainer, "energy")
    found = nearest_words(trainer)
    assert [(place, len(words)) for place, words in found[:2]] == \
        [(("attribute 1", 0, ""), 2), (("attribute 2", 0, ""), 1)]
    assert found[1][1] == [[("energy", 0.0)]]
    assert found[2][0] == ("context", 0, "")


def test_class_specific_contexts_come_class_by_class(make_trainer):
    trainer = make_trainer("CoOp", "TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 2)
    trainer.model.learner.ctx.data[2] = embedded(trainer, "grey fur")
    found = nearest_words(trainer)
    assert [place for place, _ in found] == [("context", 0, name) for name in trainer.dm.dataset.classnames]
    assert found[2][1] == [[("grey", 0.0)], [("fur", 0.0)]]


def test_the_ranking_is_that_of_a_plain_loop_over_the_rows_that_have_weights(make_trainer):
    trainer = make_trainer("CoOp")
    clip = trainer.model.backbone
    clip.stored_ids = frozenset(range(0, 49408, 400)) | {49407}
    trainer.model.learner.ctx.data = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    (_, found), = nearest_words(trainer, top=7)
    table, decoder = clip.model.token_embedding.weight.tolist(), clip.tokenizer.decoder
    for token, nearest in zip(trainer.model.learner.ctx.tolist(), found, strict=True):
        loop = sorted((math.dist(token, table[row]), decoder[row]) for row in clip.stored_ids)[:7]
        assert [distance for _, distance in nearest] == pytest.approx([distance for distance, _ in loop], rel=1e-5)
        assert [word.removesuffix("-") for word, _ in nearest] == [piece.removesuffix("</w>") for _, piece in loop]


def test_words_are_whole_pieces_have_a_hyphen_and_nothing_breaks_the_line(make_trainer):
    clip = make_trainer("CoOp").model.backbone
    tokenizer, read = clip.tokenizer, {token: clip.word(token) for token in clip.tokenizer.decoder}
    assert [read[token] for token in tokenizer.encode("playfulness café")] == ["play-", "fulness", "café"]
    assert read[tokenizer.sot_token_id] == "<start_of_text>"
    assert read[tokenizer.encoder["\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"]] == r"\u0020-"  # the space
    assert all(shown.isprintable() and " " not in shown and shown for shown in read.values())
    words = {token: shown for token, shown in read.items() if shown.isalpha() and shown.isascii() and shown.islower()}
    for token in list(words)[::100]:
        assert tokenizer.encode(words[token]) == [token]


def test_more_words_than_there_are_is_all_of_them(make_trainer):
    trainer = make_trainer("CoOp")
    trainer.model.backbone.stored_ids = frozenset(trainer.model.backbone.tokenize("a photo of"))
    (_, found), = nearest_words(trainer, top=9)
    assert {word for word, _ in found[0]} == {"a", "photo", "of"}


@pytest.mark.parametrize("name", ["VPT", "ZeroshotCLIP"])
def test_a_trainer_without_learned_text_is_refused(make_trainer, name):
    with pytest.raises(ValueError, match=f"{name} .*text"):
        learned_text(make_trainer(name).model, name)


# The command

@pytest.fixture
def command(capsys):
    """command(word, ...): the command's exit status, standard output, and lines on standard error."""
    def run(*words):
        capsys.readouterr()
        try:
            status = interpret.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err.splitlines()
    return run


def test_the_command_reads_the_epoch_that_is_asked_for_and_writes_a_table(start, make_trainer, tmp_path):
    trainer = make_trainer("MaPLe", "TRAIN.CHECKPOINT_FREQ", 1)
    trainer.train()
    path = tmp_path / "run/MultiModalPromptLearner/model.pth.tar-1"
    checkpoint = load_checkpoint(path)
    checkpoint["state_dict"]["ctx"] = embedded(trainer, "red fox")
    checkpoint["state_dict"]["compound_prompts_text.1"] = embedded(trainer, "playfulness")
    torch.save(checkpoint, path)
    done = start("-m", "p2c", "interpret", tmp_path / "run", "--top", "2", "--load-epoch", "1", "--csv",
                 tmp_path / "words.csv")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["context, layer 0, token 1", "  0.0000  red"]
    assert lines.index(interpret.DEEPER) == 6 == lines.index("context, layer 1, token 1") - 1
    assert lines[-6:-4] == ["context, layer 2, token 1", "  0.0000  play-"] and lines[-2] == "  0.0000  fulness"
    with open(tmp_path / "words.csv", newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    assert columns == ["part", "layer", "class", "token", "rank", "word", "distance"]
    assert len(rows) == 3 * 2 * 2 and rows[0] == ["context", "0", "", "1", "1", "red", "0.0"]
    assert [f"  {float(row[-1]):.4f}  {row[-2]}" for row in rows] == [line for line in lines if line.startswith("  ")]


def test_runs_that_cannot_be_read_are_a_mistake_in_one_line(make_trainer, tiny_trainer, command, tmp_path):
    status, out, (error,) = command(tmp_path / "nowhere")
    assert (status, out) == (2, "") and "results.json" in error
    make_trainer("VPT", "OPTIM.MAX_EPOCH", 1, out="vpt").train()
    status, out, (error,) = command(tmp_path / "vpt")
    assert (status, out) == (2, "") and re.match("error: VPT .*text", error)
    tiny_trainer("OPTIM.MAX_EPOCH", 1).train()  # another package's
    status, out, (error,) = command(tmp_path / "run")
    assert (status, out) == (2, "") and error.startswith("error: TinyTrainer ")


def test_calls_that_make_no_sense_and_a_table_that_cannot_be_written(make_trainer, command, tmp_path):
    status, out, (error,) = command(tmp_path, "--top", "0")
    assert (status, out) == (2, "") and "--top" in error
    make_trainer("CoOp", "OPTIM.MAX_EPOCH", 1).train()
    status, out, (error,) = command(tmp_path / "run", "--csv", tmp_path)
    assert status == 1 and out.startswith("context, layer 0, token 1\n") and str(tmp_path) in error
