"""The tables of the four benchmarks: what is averaged over what, beside which published numbers, what is marked."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from messages import naming
from run_folders import NEW_BLOCK, log_text, write_log, write_results

import parse_test_res
from p2c.grid.families import FAMILIES
from p2c.tables.curves import figure_of
from p2c.tables.published import KEYS, references
from p2c.tables.rows import find_rows
from p2c.tables.runs import std

ROOT = Path(__file__).resolve().parents[1]
STANDARD, SHAPES = FAMILIES["standard"], FAMILIES["shapes"]
CFG = "vit_b16_c2_ep5_batch4_2ctx"


def config(seed=1, half="all", backbone="ViT-B/16", weights="openai", lr=0.002, **more) -> dict:
    """As results.json has it; the keys that matter here."""
    return {
        "SEED": seed, "OUTPUT_DIR": f"somewhere/seed{seed}", "OPTIM": {"LR": lr},
        "MODEL": {"BACKBONE": {"NAME": backbone, "WEIGHTS": weights}},
        "DATASET": {"SUBSAMPLE_CLASSES": half, **more},
    }  # fmt: skip


def write_pair(root, dataset, base, novel, seed=1, trainer="MaPLe", cfg=CFG, shots=16, **settings) -> None:
    for folder, half, value in (("train_base", "base", base), ("test_new", "new", novel)):
        run = root / "base2new" / folder / dataset / f"shots_{shots}" / trainer / cfg / f"seed{seed}"
        write_results(run, value, config=config(seed, half, **settings))


def write_trained(root, dataset, value, seed=1, trainer="MaPLe", cfg=CFG, shots=16, **settings) -> Path:
    run = root / dataset / trainer / f"{cfg}_{shots}shots" / f"seed{seed}"
    write_results(run, value, config=config(seed, **settings))
    return run


def write_tested(root, dataset, value, seed=1, trainer="MaPLe", cfg=CFG, **settings) -> Path:
    run = root / "evaluation" / trainer / f"{cfg}_16shots" / dataset / f"seed{seed}"
    write_results(run, value, config=config(seed, **settings))
    return run


def write_zero_shot(root, dataset, value, cfg="vit_b16", **settings) -> None:
    write_results(root / "ZeroshotCLIP" / cfg / dataset, value, config=config(**settings))


def tiny(root, write, datasets, **settings) -> None:
    """The same run for several datasets of the shapes family, with values 60, 61, ... in their order."""
    for value, dataset in enumerate(datasets, start=60):
        write(root, dataset, value, cfg="tiny_shapes", backbone="tiny-shapes", weights="builtin", **settings)


@pytest.fixture
def rows(parse):
    """The CSV of a benchmark by (trainer, config, shots, dataset), and what went to standard error."""

    def read(*arguments) -> tuple[dict[tuple[str, str, str, str], dict[str, str]], str]:
        status, out, err = parse(*arguments, "--format", "csv")
        assert status == 0
        names = ("trainer", "config", "shots", "dataset")
        return {tuple(row[name] for name in names): row for row in csv.DictReader(io.StringIO(out))}, err

    return read


def numbers(row: dict[str, str], *columns: str) -> list[float]:
    return [float(row[column]) for column in columns]


# Base-to-novel


def write_published(root, offset=0.0, leave_out=(), trainer="MaPLe", **settings) -> None:
    """Runs that reach MaPLe's published numbers plus an offset."""
    for dataset, values in references()["base_to_novel"]["maple"]["datasets"].items():
        if dataset not in leave_out:
            write_pair(root, dataset, values["base"] + offset, values["novel"] + offset, trainer=trainer, **settings)


def test_base_to_novel_stands_beside_the_published_numbers(tmp_path, rows):
    write_published(tmp_path, offset=0.5)
    table, err = rows("--base2new", tmp_path)
    assert [key[3] for key in table] == [*STANDARD.datasets, "average"]
    for row in table.values():
        assert numbers(row, "base_difference", "novel_difference") == pytest.approx([0.5, 0.5], abs=0.006)
    average = table["MaPLe", CFG, "16", "average"]
    assert numbers(average, "base_published", "novel_published", "hm_published") == [82.28, 75.14, 78.55]
    base, novel = numbers(average, "base", "novel")
    assert numbers(average, "hm", "hm_difference") == pytest.approx([2 * base * novel / (base + novel), 0.5], abs=0.02)
    assert average["complete"] == "yes" and len(err.splitlines()) == 2 and "published" in err and "ViT-B/16" in err


def test_the_text_says_what_published_means(tmp_path, parse):
    write_published(tmp_path, offset=0.5)
    _, out, _ = parse("--base2new", tmp_path)
    assert re.search("published: .*ViT-B/16\n", out)
    dtd = next(line for line in out.splitlines() if line.startswith("dtd"))
    assert "80.36 / 59.18 / 68.16  +0.50 / +0.50 / +0.51  1" in dtd


def test_of_p2c_only_averages_are_published(tmp_path, rows):
    write_published(tmp_path, trainer="P2C")
    table, _ = rows("--base2new", tmp_path)
    assert {key[3] for key, row in table.items() if row["base_published"]} == {"average"}
    assert table["P2C", CFG, "16", "average"]["hm_published"] == "79.7"


def test_an_incomplete_average_is_marked_and_not_compared(tmp_path, parse, rows):
    write_published(tmp_path, leave_out=["sun397"])
    _, out, _ = parse("--base2new", tmp_path)
    sun = next(line for line in out.splitlines() if line.startswith("sun397"))
    assert re.fullmatch(r"sun397 +– +– +– +80.82 / 78.70 / 79.75 +–", sun)
    average = next(line for line in out.splitlines() if line.startswith("average"))
    assert re.fullmatch(r"average \(10 of 11\) +[^/]+82.28 / 75.14 / 78.55 +1", average)
    command = f"OUTPUT={tmp_path} CFG={CFG} bash scripts/run.sh MaPLe base2new_train sun397 1, then base2new_test"
    note = f"- MaPLe, {CFG}, 16 shots: no result for sun397; its average is over 10 of 11 datasets"
    assert f"{note}; begin with {command}\n" in out
    table, _ = rows("--base2new", tmp_path)
    average, sun = (table["MaPLe", CFG, "16", name] for name in ("average", "sun397"))
    assert (average["complete"], average["base_difference"]) == ("no", "")
    assert (sun["complete"], sun["base"], sun["base_published"], sun["n_seeds"]) == ("no", "", "80.82", "0")
    assert parse("--base2new", "--strict", tmp_path)[0] == 1


def test_a_table_of_chosen_datasets_misses_no_others_and_its_average_is_compared_with_nothing(tmp_path, parse, rows):
    write_published(tmp_path)
    status, out, _ = parse("--base2new", "--strict", tmp_path, "--datasets", "dtd", "eurosat")
    assert status == 0 and [line.split()[0] for line in out.splitlines()[3:6]] == ["dtd", "eurosat", "average"]
    table, _ = rows("--base2new", tmp_path, "--datasets", "dtd", "eurosat")
    average = table["MaPLe", CFG, "16", "average"]
    assert numbers(average, "base") == pytest.approx([(80.36 + 94.07) / 2]) and average["base_published"] == ""
    assert table["MaPLe", CFG, "16", "dtd"]["base_published"] == "80.36"
    tiny(tmp_path, write_trained, [SHAPES.source])
    tiny(tmp_path, write_tested, SHAPES.targets)
    table, _ = rows("--xd", tmp_path, "--datasets", "shapes_pairs")
    assert [key[3] for key in table] == ["shapes", "shapes_pairs", "average"]
    assert parse("--base2new", tmp_path, "--datasets", "shapes")[0] == 1


def test_the_output_folder_and_base2new_below_it_give_the_same(tmp_path, parse):
    write_published(tmp_path)
    assert parse("--base2new", tmp_path) == parse("--base2new", tmp_path / "base2new")


@pytest.mark.parametrize(
    "settings",
    [{"backbone": "ViT-B/32"}, {"weights": "random"}, {"weights": "laion400m_e32"}, {"cfg": "rn50"}, {"shots": 4}],
)
def test_only_like_is_compared_with_like(tmp_path, rows, settings):
    write_published(tmp_path, **settings)
    assert not any(row["base_published"] for row in rows("--base2new", tmp_path)[0].values())


def test_only_accuracy_is_published(tmp_path, parse):
    write_published(tmp_path)
    assert "ublished" not in parse("--base2new", "--keyword", "macro_f1", tmp_path)[1]


def test_a_file_of_weights_and_mere_logs_count_as_clips(tmp_path, rows):
    write_published(tmp_path / "file", weights="/clip/ViT-B-16.pt")
    assert rows("--base2new", tmp_path / "file")[0]["MaPLe", CFG, "16", "dtd"]["base_published"] == "80.36"
    folder = tmp_path / "logs" / "base2new"
    write_log(folder / "train_base" / "dtd" / "shots_16" / "MaPLe" / CFG / "seed1", log_text(80))
    write_log(folder / "test_new" / "dtd" / "shots_16" / "MaPLe" / CFG / "seed1", NEW_BLOCK.format(60, 40, 60))
    dtd = rows("--base2new", tmp_path / "logs")[0]["MaPLe", CFG, "16", "dtd"]
    assert numbers(dtd, "base_difference", "novel_difference") == pytest.approx([80 - 80.36, 60 - 59.18])


def test_families_and_user_datasets_are_averaged_separately(tmp_path, rows, parse):
    write_published(tmp_path, cfg="same")
    for dataset in (*SHAPES.datasets, "birds", "plants"):
        write_pair(tmp_path, dataset, 70, 50, cfg="same", backbone="tiny-shapes")
    _, out, _ = parse("--base2new", tmp_path)
    sizes = [re.search(r"\d+ of \d+ \w+", line)[0] for line in out[out.index("Averages") :].splitlines()[3:6]]
    assert sizes == ["11 of 11 standard", "3 of 3 shapes", "2 of 2 own"]
    assert out.count("82.28 / 75.14 / 78.55") == 2  # the standard family's table and the averages


def test_trainers_stand_side_by_side(tmp_path, parse):
    write_published(tmp_path)
    write_published(tmp_path, trainer="P2C", leave_out=["imagenet"])
    _, out, _ = parse("--base2new", tmp_path)
    side = out[out.index("Side by side") : out.index("Averages")].splitlines()
    assert [line.split()[:2] for line in side[3:6]] == [["imagenet", "MaPLe"], ["P2C", CFG], ["caltech101", "MaPLe"]]
    assert side[4].split()[3:] == ["–", "–", "–"]


def test_coops_epochs_do_not_split_its_row(tmp_path, rows):
    write_pair(tmp_path, "imagenet", 76, 68, trainer="CoOp", cfg="vit_b16_ep50_ctxv1")
    write_pair(tmp_path, "dtd", 79, 41, trainer="CoOp", cfg="vit_b16_ctxv1")
    table, _ = rows("--base2new", tmp_path)
    assert numbers(table["CoOp", "vit_b16_ctxv1", "16", "average"], "base", "novel") == [77.5, 54.5]
    write_pair(tmp_path, "dtd", 70, 40, trainer="CoOp", cfg="vit_b16_ep50_ctxv1")  # a rival: both ran on dtd
    table, _ = rows("--base2new", tmp_path)
    assert table["CoOp", "vit_b16_ctxv1", "16", "dtd"]["base"] == "79.0"
    assert table["CoOp", "vit_b16_ep50_ctxv1", "16", "dtd"]["base"] == "70.0"


# Cross-dataset transfer and domain generalization


@pytest.mark.parametrize("benchmark, others", [("--xd", SHAPES.targets), ("--dg", SHAPES.domains)])
def test_a_transfers_average_leaves_out_the_source(tmp_path, rows, benchmark, others):
    for seed in (1, 2, 3):
        for value, dataset in enumerate(others):
            write_tested(tmp_path, dataset, 50 + value + seed**2, seed, cfg="tiny_shapes", backbone="tiny-shapes")
        write_trained(tmp_path, "shapes", 90 + seed, seed, cfg="tiny_shapes", backbone="tiny-shapes")
    tiny(tmp_path, write_tested, {*SHAPES.targets, *SHAPES.domains} - {*others}, trainer="P2C")  # another benchmark's
    table, err = rows(benchmark, tmp_path)
    assert [key for key in table] == [("MaPLe", "tiny_shapes", "16", name) for name in ("shapes", *others, "average")]
    source, first, average = (table["MaPLe", "tiny_shapes", "16", name] for name in ("shapes", others[0], "average"))
    spread = pstdev([1, 4, 9])
    assert numbers(source, "accuracy", "accuracy_std") == pytest.approx([92, pstdev([1, 2, 3])])
    assert numbers(first, "accuracy", "accuracy_std") == pytest.approx([50 + 14 / 3, spread])
    mean = fmean(50 + value for value in range(len(others))) + 14 / 3
    assert numbers(average, "accuracy", "accuracy_std") == pytest.approx([mean, spread])
    assert (average["seeds"], average["n_seeds"], average["complete"], err) == ("1 2 3", "3", "yes", "")
    ci95 = rows(benchmark, "--ci95", tmp_path)[0]["MaPLe", "tiny_shapes", "16", "average"]
    assert numbers(ci95, "accuracy", "accuracy_ci95") == pytest.approx([mean, 1.96 * spread / 3**0.5])


def test_a_transfer_stands_beside_the_published_numbers(tmp_path, rows):
    maple = references()["cross_dataset"]["maple"]
    for dataset, value in maple["targets"].items():
        write_tested(tmp_path, dataset, value - 1)
    write_trained(tmp_path, "imagenet", maple["imagenet"] + 2)
    table, _ = rows("--xd", tmp_path)
    assert [key[3] for key in table] == ["imagenet", *STANDARD.targets, "average"]
    differences = {key[3]: float(row["accuracy_difference"]) for key, row in table.items()}
    assert differences.pop("imagenet") == pytest.approx(2)
    assert list(differences.values()) == pytest.approx([-1] * 11, abs=0.006)
    assert table["MaPLe", CFG, "16", "average"]["accuracy_published"] == "66.3"


def test_zero_shot_is_one_run_of_any_transfer(tmp_path, rows, parse):
    for dataset, value in references()["domain_generalization"]["clip"]["targets"].items():
        write_zero_shot(tmp_path, dataset, value)
    write_zero_shot(tmp_path, "imagenet", 66.73)
    write_zero_shot(tmp_path, "dtd", 44)
    table, _ = rows("--dg", tmp_path)
    average = table["ZeroshotCLIP", "vit_b16", "0", "average"]
    assert numbers(average, "accuracy", "accuracy_published") == pytest.approx([57.1775, 57.17])
    assert (average["accuracy_std"], average["n_seeds"], average["seeds"]) == ("", "1", "")
    assert "±" not in parse("--dg", tmp_path)[1].partition("\n")[2]
    note = "begin with OUTPUT={} bash scripts/run.sh ZeroshotCLIP zeroshot caltech101 vit_b16\n"
    assert note.format(tmp_path) in parse("--xd", tmp_path)[1]


def test_the_sources_result_may_be_a_test_like_the_others(tmp_path, rows):
    write_tested(tmp_path, "dtd", 46)
    write_tested(tmp_path, "imagenet", 70)
    assert rows("--xd", tmp_path)[0]["MaPLe", CFG, "16", "imagenet"]["accuracy"] == "70.0"
    write_trained(tmp_path, "imagenet", 71)
    assert rows("--xd", tmp_path)[0]["MaPLe", CFG, "16", "imagenet"]["accuracy"] == "71.0"


def test_missing_targets_and_seeds_are_marked_and_can_be_filled(tmp_path, parse):
    tiny(tmp_path, write_tested, SHAPES.targets[1:])
    tiny(tmp_path, write_tested, SHAPES.targets[2:], seed=2)
    write_trained(tmp_path, "shapes", 90, 1, cfg="tiny_shapes")
    stopped = write_trained(tmp_path, "shapes", 90, 2, cfg="tiny_shapes")
    write_results(stopped, 0, finished=False)
    status, out, _ = parse("--xd", "--format", "markdown", tmp_path)
    line = next(line for line in out.splitlines() if line.startswith("| MaPLe"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["MaPLe", "tiny_shapes", "16", "90.00*", "–", "60.00*", "60.50 ± 0.50",
                     "61.50 ± 0.50", "60.67* (3 of 4)", "1, 2"]  # fmt: skip
    label = "- MaPLe, tiny_shapes, 16 shots:"
    begin = f"OUTPUT={tmp_path} CFG=tiny_shapes bash scripts/run.sh MaPLe"
    notes = [line for line in out.splitlines() if line.startswith(label)]
    assert status == 0 and f"- not counted: {stopped}: not finished" in out
    assert [line for line in notes if re.search(naming("3 of 4", f"{begin} xd_test shapes_counts 1"), line)]
    assert [line for line in notes if re.search(
        naming("shapes has seed 1", "shapes_sizes has seed 1", "seeds 1, 2", f"{begin} xd_train shapes 2"), line)]


def test_a_test_on_a_user_dataset_is_named(tmp_path, parse):
    tiny(tmp_path, write_tested, [*SHAPES.targets, "birds"])
    assert re.search("- .*MaPLe, tiny_shapes, 16 shots: .*birds", parse("--xd", tmp_path)[1])


def test_coops_variants_are_part_of_the_configs_name(tmp_path, rows):
    variant = "nctx16_cscFalse_ctpend"
    result = "Evaluate on the *test* set\n" + NEW_BLOCK.format(60, 40, 60)
    write_log(tmp_path / "evaluation" / "CoOp" / "vit_b16_ep50_16shots" / variant / "imagenet_a" / "seed1", result)
    write_log(tmp_path / "imagenet" / "CoOp" / "vit_b16_ep50_16shots" / variant / "seed1", log_text(71.5))
    table, _ = rows("--dg", tmp_path)
    source, target = (table["CoOp", f"vit_b16_ep50/{variant}", "16", name] for name in ("imagenet", "imagenet_a"))
    assert (source["accuracy"], target["accuracy"], target["accuracy_published"]) == ("71.5", "60.0", "49.71")


# Few-shot learning


def write_few_shot(root, datasets=SHAPES.datasets, shots=(1, 2, 4, 8, 16), **settings) -> None:
    for number in shots:
        for value, dataset in enumerate(datasets):
            write_trained(root, dataset, 50 + value + number, shots=number, **settings)


def test_few_shot_averages_over_datasets_for_each_number_of_shots(tmp_path, rows, parse):
    write_few_shot(tmp_path, cfg="tiny_shapes", backbone="tiny-shapes")
    tiny(tmp_path, write_zero_shot, (*SHAPES.datasets, *SHAPES.domains))
    table, err = rows("--fewshot", tmp_path)
    averages = {key[2]: float(row["accuracy"]) for key, row in table.items() if key[3] == "average"}
    assert averages == {"0": 61, "1": 52, "2": 53, "4": 55, "8": 59, "16": 67} and err == ""
    out = parse("--fewshot", tmp_path)[1].splitlines()
    assert out[1].split() == ["Dataset", "Trainer", "Config", "0", "1", "2", "4", "8", "16", "Seeds"]
    assert out[3].split()[:5] == ["shapes", "MaPLe", "tiny_shapes", "51.00", "52.00"]
    assert out[4].split() == ["ZeroshotCLIP", "tiny_shapes", "60.00"]


def test_few_shot_averages_stand_beside_the_published_ones(tmp_path, rows, parse):
    write_few_shot(tmp_path, STANDARD.datasets)
    for dataset in STANDARD.datasets:
        write_zero_shot(tmp_path, dataset, 65)
    table, _ = rows("--fewshot", tmp_path)
    theirs = {key[:3]: row["accuracy_published"] for key, row in table.items() if row["accuracy_published"]}
    assert {key[2]: value for key, value in theirs.items()} == {
        "0": "65.36", "1": "69.27", "2": "72.58", "4": "75.37", "8": "78.89", "16": "81.79",
    }  # fmt: skip
    assert float(table["MaPLe", CFG, "16", "average"]["accuracy_difference"]) == pytest.approx(71 - 81.79)
    out = parse("--fewshot", tmp_path)[1].splitlines()
    assert [line.split() for line in out if "published  " in line or "difference  " in line] == [
        ["published", "69.27", "72.58", "75.37", "78.89", "81.79"],
        ["difference", "-13.27", "-15.58", "-16.37", "-15.89", "-10.79"],
        ["published", "65.36"],
        ["difference", "-0.36"],
    ]


def test_missing_shots_are_marked(tmp_path, parse):
    write_few_shot(tmp_path, shots=(2, 16), cfg="tiny_shapes")
    write_few_shot(tmp_path, ["shapes"], shots=(16, 32), cfg="tiny_shapes", seed=2)
    out = parse("--fewshot", tmp_path)[1]
    shapes = next(line for line in out.splitlines() if line.startswith("shapes "))
    assert re.split("  +", shapes)[3:] == ["–", "52.00*", "–", "–", "66.00 ± 0.00", "82.00*", "1, 2"]
    begin = re.escape(f"OUTPUT={tmp_path} CFG=tiny_shapes")
    run = "bash scripts/run.sh MaPLe few_shot shapes"
    assert re.search(f"- MaPLe, tiny_shapes, 1, 4, 8 shots: .*{begin} SEEDS='1 2' {run} 1\n", out)
    assert re.search("- MaPLe, tiny_shapes, 32 shots: .*shapes_counts, shapes_grounds", out)
    assert re.search(f"seeds 1, 2; .*{begin} SEEDS=2 {run} 2\n", out)


def test_a_transfers_training_is_no_few_shot_result(tmp_path, rows):
    write_few_shot(tmp_path, STANDARD.datasets)
    write_trained(tmp_path, "imagenet", 70, cfg=f"{CFG}_cross_datasets")
    write_tested(tmp_path, "dtd", 46, cfg=f"{CFG}_cross_datasets")
    write_tested(tmp_path, "dtd", 46)  # of a config that few-shot has, too
    assert {key[1] for key in rows("--fewshot", tmp_path)[0]} == {CFG}


def test_coops_few_shot_curve_spans_its_configs(tmp_path, rows):
    epochs = {1: "_ep50", 2: "_ep100", 4: "_ep100", 8: "", 16: ""}
    for shots, suffix in epochs.items():
        name = f"vit_b16{suffix}_{shots}shots"
        write_log(tmp_path / "dtd" / "CoOp" / name / "nctx16_cscFalse_ctpend" / "seed1", log_text(50 + shots))
    table, _ = rows("--fewshot", tmp_path)
    curve = {key[2]: float(row["accuracy"]) for key, row in table.items() if key[3] == "dtd"}
    assert curve == {"1": 51, "2": 52, "4": 54, "8": 58, "16": 66}
    assert {key[1] for key in table} == {"vit_b16/nctx16_cscFalse_ctpend"}


# Mixed cells


def notes_of(parse, root) -> list[str]:
    return [line for line in parse("--base2new", root)[1].splitlines() if line.startswith("- ") and "mixed" in line]


def test_seeds_of_different_configurations_are_named(tmp_path, parse):
    write_pair(tmp_path, "dtd", 80, 60)
    write_pair(tmp_path, "dtd", 80, 60, seed=2, NUM_WORKERS=0)
    assert notes_of(parse, tmp_path) == []
    write_pair(tmp_path, "dtd", 80, 60, seed=3, lr=0.5, NUM_SHOTS=16)
    notes = notes_of(parse, tmp_path)
    assert len(notes) == 2  # base, novel
    assert all(re.search(f"MaPLe, {CFG}, 16 shots: dtd: .* OPTIM.LR$", note) for note in notes)


def test_settings_that_may_change_mix_nothing(tmp_path, parse):
    write_pair(tmp_path, "dtd", 80, 60, ROOT="/here")
    write_pair(tmp_path, "dtd", 80, 60, seed=2, ROOT="/there")
    assert notes_of(parse, tmp_path) == []


def test_halves_of_different_configurations_are_named(tmp_path, parse):
    write_pair(tmp_path, "dtd", 80, 60)
    novel = tmp_path / "base2new" / "test_new" / "dtd" / "shots_16" / "MaPLe" / CFG / "seed1"
    write_results(novel, 60, config=config(half="new", backbone="ViT-B/32"))
    note, = notes_of(parse, tmp_path)
    assert re.search(f"MaPLe, {CFG}, 16 shots: dtd: .* MODEL.BACKBONE.NAME$", note)


def test_a_seed_that_is_not_what_its_folder_says_is_named(tmp_path, parse):
    write_pair(tmp_path, "dtd", 80, 60)
    folder = tmp_path / "base2new" / "train_base" / "dtd" / "shots_16" / "MaPLe" / CFG
    (folder / "seed1").rename(folder / "seed2")
    (tmp_path / "base2new" / "test_new" / "dtd" / "shots_16" / "MaPLe" / CFG / "seed1").rename(
        tmp_path / "base2new" / "test_new" / "dtd" / "shots_16" / "MaPLe" / CFG / "seed2")
    note, = notes_of(parse, tmp_path)
    assert re.search(f"MaPLe, {CFG}, 16 shots: dtd: .*seed 2 .* SEED 1$", note)


# Formats


def test_text_has_the_spread_below_the_mean(tmp_path, parse):
    tiny(tmp_path, write_tested, SHAPES.targets)
    tiny(tmp_path, write_tested, SHAPES.targets, seed=2)
    _, out, _ = parse("--xd", tmp_path)
    mean, spread = out.splitlines()[3:5]
    assert mean.split() == ["MaPLe", "tiny_shapes", "16", "–", "60.00", "61.00", "62.00", "63.00", "61.50", "1,", "2"]
    assert spread.split() == ["±", "0.00"] * 5


def test_one_seed_has_no_spread(tmp_path, parse, rows):
    write_published(tmp_path)
    status, out, _ = parse("--base2new", tmp_path)
    assert "±" not in out and out.partition(";")[0].endswith("accuracy in %")
    table, _ = rows("--base2new", tmp_path)
    assert {row["base_std"] + row["hm_std"] for row in table.values()} == {""}


@pytest.mark.parametrize("keyword, unit, shown", [("nll", "nats", "0.512"), ("ece", "%", "7.00"),
                                                  ("error_rate", "%", "30.00")])
def test_a_metric_has_its_own_unit_and_a_harmonic_mean_only_if_that_means_something(tmp_path, parse, rows, keyword,
                                                                                    unit, shown):
    for half in ("train_base", "test_new"):
        run = tmp_path / "base2new" / half / "dtd" / "shots_16" / "MaPLe" / CFG / "seed1"
        write_results(run, 70, config=config(), nll=0.5123, ece=7.0)
    status, out, _ = parse("--base2new", tmp_path, "--keyword", keyword)
    assert status == 0 and f"{keyword} in {unit}\n" in out and "HM" not in out and "ublished" not in out
    assert re.search(rf"dtd +{shown} +{shown} +1\n", out)
    assert "hm" not in next(iter(rows("--base2new", tmp_path, "--keyword", keyword)[0].values()))


@pytest.mark.parametrize("benchmark, known", [("--base2new", "birds"), ("--xd", "shapes_pairs"),
                                              ("--dg", "shapes_dark")])
def test_an_unknown_dataset_is_a_mistake_that_names_the_known(tmp_path, parse, benchmark, known):
    write_pair(tmp_path, "birds", 80, 60)
    status, out, err = parse(benchmark, tmp_path, "--datasets", "imagenet,cats")
    assert (status, out, err.count("\n")) == (2, "", 1) and re.search(naming("'cats'", "imagenet", known), err)


# LaTeX


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.removesuffix(r"\\").split("&")]


def check_latex(text: str) -> None:
    """Environments and braces are balanced, every row has the columns of its tabular, and nothing is unescaped."""
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", text):
        opened.append(name) if kind == "begin" else opened.remove(name)
    plain = re.sub(r"\\[\\{}%_&#$]", "", text)
    assert not opened and plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert "%" not in "".join(line.removesuffix("{%") for line in plain.splitlines() if not line.startswith("%"))
    assert not re.search(r"_(?!\{\\pm)", re.sub(r"\\label\{.*\}", "", plain))
    for body in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", plain, flags=re.DOTALL):
        columns = len(re.search(r"\{(l?c+)\}", body)[1])
        for line in re.findall(r"^(?!\\multicolumn| & ).*&.*$", body, flags=re.MULTILINE):
            assert line.count("&") == columns - 1
    tables = text.count(r"\begin{tabular}")
    assert all(text.count(rf"\{rule}rule") == tables for rule in ("top", "mid", "bottom"))


def test_latex_of_base_to_novel_has_names_as_in_papers_and_the_best_in_bold(tmp_path, parse):
    for seed in (1, 2):
        write_pair(tmp_path, "oxford_flowers", 80 + seed, 60, seed=seed)
        write_pair(tmp_path, "oxford_flowers", 80.999 + seed, 60, seed=seed, trainer="P2C")
        write_pair(tmp_path, "oxford_flowers", 70, 60.001, seed=seed, trainer="ZeroshotCLIP", cfg="vit_b16")
    _, out, _ = parse("--base2new", "--format", "latex", tmp_path)
    check_latex(out)
    flowers = out[out.index(r"{Flowers102} \\"):]
    lines = [cells_of(line) for line in flowers.splitlines() if "&" in line][:4]
    assert lines[0] == ["Method", "Base", "Novel", "HM"]
    assert lines[2][:3] == ["MaPLe", r"81.50$_{\pm 0.50}$", r"\textbf{60.00}$_{\pm 0.00}$"]
    assert lines[3][:3] == ["P2C", r"\textbf{82.50}$_{\pm 0.50}$", r"\textbf{60.00}$_{\pm 0.00}$"]
    assert lines[1][:3] == ["CLIP", r"70.00$_{\pm 0.00}$", r"\textbf{60.00}$_{\pm 0.00}$"]
    assert r"\textbf" in lines[3][3] and r"\textbf" not in lines[2][3]
    assert "Average over 11 datasets" in out and "(1 of 11)" in out and "published" not in out


def test_latex_of_a_transfer_has_columns_for_source_and_targets(tmp_path, parse):
    for trainer, offset in (("CoOp", 0), ("P2C", 1)):
        for dataset, value in references()["cross_dataset"]["maple"]["targets"].items():
            write_tested(tmp_path, dataset, value + offset, trainer=trainer)
        write_trained(tmp_path, "imagenet", 71, trainer=trainer)
    write_tested(tmp_path, "dtd", 99, seed=2, trainer="CoOp")
    _, out, err = parse("--xd", "--format", "latex", tmp_path)
    check_latex(out)
    heads, coop, p2c = (cells_of(line) for line in out.splitlines() if line.count("&") == 12)
    assert heads == ["Method", "ImageNet", "Caltech101", "OxfordPets", "StanfordCars", "Flowers102", "Food101",
                     "FGVCAircraft", "SUN397", "DTD", "EuroSAT", "UCF101", "Average"]
    assert p2c[1] == r"\textbf{71.00}" and coop[1] == r"\textbf{71.00}$^{*}$"
    assert p2c[2] == r"\textbf{94.53}" and coop[2].startswith("93.53")
    assert coop[9].startswith(r"\textbf{") and "different seeds" in err and "different seeds" not in out


def test_latex_of_few_shot_has_a_column_for_each_number_of_shots_and_lower_errors_in_bold(tmp_path, parse):
    write_few_shot(tmp_path, cfg="tiny_shapes")
    write_few_shot(tmp_path, shots=(2,), cfg="tiny_shapes", trainer="P2C")
    tiny(tmp_path, write_zero_shot, SHAPES.datasets)
    write_trained(tmp_path, "shapes_counts", 90, shots=2, cfg="tiny_shapes", trainer="P2C")
    _, out, _ = parse("--fewshot", "--format", "latex", "--keyword", "error", tmp_path)
    check_latex(out)
    counts = out[out.index(r"{shapes\_counts} \\"):]
    heads, clip, maple, p2c = [cells_of(line) for line in counts.splitlines() if "&" in line][:4]
    assert heads == ["Method", "0 shots", "1 shot", "2 shots", "4 shots", "8 shots", "16 shots"]
    assert maple[:4] == ["MaPLe", "--", "48.00", "47.00"] and p2c[:4] == ["P2C", "--", "--", r"\textbf{10.00}"]
    assert clip[:3] == ["CLIP", "39.00", "--"]


def test_latex_escapes_what_users_call_their_datasets_and_configurations(tmp_path, parse):
    for cfg in ("a_b", "a&b"):
        write_pair(tmp_path, "50%_#1~$x^{2}", 80, 60, cfg=cfg)
    _, out, _ = parse("--base2new", "--format", "latex", tmp_path)
    assert r"50\%\_\#1\textasciitilde{}\$x\textasciicircum{}\{2\}" in out
    assert r"MaPLe, a\_b &" in out and r"MaPLe, a\&b &" in out


@pytest.mark.parametrize("benchmark", ["--xd", "--dg", "--fewshot"])
def test_nothing_found_is_one_line(tmp_path, parse, benchmark):
    status, out, err = parse(benchmark, tmp_path)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"Nothing found in {tmp_path} (looked for ")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("--xd", "--dg"), ("--xd", "--dg")),
        (("--xd", "--test-log"), ("--xd", "--test-log")),
        (("--xd", "--curves", "a.png"), ("--curves", "--fewshot")),
        (("--fewshot", "--curves", "a.svg"), ("--curves a.svg", ".png", ".pdf")),
    ],
)
def test_mistaken_calls_are_one_error(arguments, named, capsys):
    with pytest.raises(SystemExit) as exited:
        parse_test_res.main(["output", *arguments])
    err = capsys.readouterr().err
    assert exited.value.code == 2 and re.search(naming(*named), err) and err.count("error: ") == 1


# Curves


@pytest.mark.parametrize("name, magic", [("curves.png", b"\x89PNG"), ("new/CURVES.PDF", b"%PDF")])
def test_curves_are_drawn_as_the_files_name_says(tmp_path, parse, name, magic):
    write_few_shot(tmp_path / "out", ["shapes"], cfg="tiny_shapes")
    status, _, err = parse("--fewshot", tmp_path / "out", "--curves", tmp_path / name)
    assert status == 0 and f"Curves: {tmp_path / name}\n" in err
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_curves_that_cannot_be_written_are_one_line_and_status_1(tmp_path, parse):
    write_few_shot(tmp_path / "out", ["shapes"], cfg="tiny_shapes")
    (tmp_path / "file").write_text("in the way")
    status, _, err = parse("--fewshot", tmp_path / "out", "--curves", tmp_path / "file" / "curves.png")
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1


def test_a_panel_has_a_line_for_each_trainer_and_hollow_points_for_incomplete_averages(tmp_path):
    write_few_shot(tmp_path, cfg="tiny_shapes")
    write_few_shot(tmp_path, ["shapes"], shots=(1, 16), cfg="tiny_shapes", trainer="P2C")
    tiny(tmp_path, write_zero_shot, SHAPES.datasets)
    figure = figure_of(find_rows("fewshot", [str(tmp_path)], "accuracy", std, []), "accuracy", "std")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["average of 3 (hollow: of fewer)", *SHAPES.datasets]
    labels, = ([text.get_text() for text in legend.get_texts()] for legend in figure.legends)
    assert labels == ["MaPLe", "P2C", "ZeroshotCLIP"]
    average = figure.axes[0]
    assert [tick.get_text() for tick in average.get_xticklabels()] == ["0", "1", "2", "4", "8", "16"]
    lines = {container.get_label(): container.lines[0] for container in average.containers}
    assert list(lines["MaPLe"].get_ydata()) == [52, 53, 55, 59, 67]
    assert [round(x) for x in lines["MaPLe"].get_xdata()] == [1, 2, 3, 4, 5]
    hollow = [list(line.get_ydata()) for line in average.lines if line.get_markerfacecolor() == "white"]
    assert hollow == [[], [51, 66], []]
    assert len(figure.axes[2].containers) == 1  # P2C has nothing on shapes_counts


# The published numbers, and what the aggregator needs


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC"])
def test_published_averages_are_those_of_the_published_numbers(trainer):
    block = references()["base_to_novel"][KEYS[trainer]]
    assert tuple(block["datasets"]) == STANDARD.datasets
    base, novel = (fmean(values[half] for values in block["datasets"].values()) for half in ("base", "novel"))
    assert [base, novel] == pytest.approx([block["average"]["base"], block["average"]["novel"]], abs=0.01)
    assert 2 * base * novel / (base + novel) == pytest.approx(block["average"]["hm"], abs=0.01)


def test_averaging_coops_folders_needs_the_standard_library_alone(tmp_path):
    write_log(tmp_path / "seed1", log_text(81))
    command = [sys.executable, "-S", str(ROOT / "parse_test_res.py"), str(tmp_path)]  # -S: nothing that pip installed
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ""})
    assert done.returncode == 0 and "* accuracy: 81.00% +- 0.00%" in done.stdout, done.stderr
