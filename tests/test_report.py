"""p2c report: what the page shows, that it is one whole file, and how a browser lays it out."""
import base64
import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

import parse_test_res
from p2c.cli import report
from p2c.engine.curves import CurveWriter
from p2c.engine.results import read_results
from p2c.tables.report import MATRIX, make_page, thumbnail

NAMES = ['cat & <b>"dog"', "$x_1$ owl", "yak"]
VOID = {"meta", "img", "br", "link", "input"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """A page's elements, its texts, and its tables as rows of cells; fails where tags are not balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.texts, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)
        if {"td", "th"} & set(self.open[-1:]):
            self.tables[-1][-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, *headers: str) -> list[list[str]]:
        """The rows of the first table whose header begins with these cells."""
        return next(rows[1:] for rows in self.tables if tuple(rows[0][:len(headers)]) == headers)


def write_run(folder, root, rows, names=NAMES, trainer="MaPLe", dataset="Pets", seed=1, **record):
    """A finished run with predictions `rows`: path, label, predicted label, probability."""
    folder.mkdir(parents=True)
    right = [label for _, label, predicted, _ in rows if label == predicted]
    totals = [sum(label == place for _, label, *_ in rows) for place in range(len(names))]
    accuracies = [100 * right.count(place) / total if total else None for place, total in enumerate(totals)]
    metrics = {"accuracy": 100 * len(right) / len(rows), "macro_f1": 50.0, "correct": len(right), "total": len(rows),
               "class_accuracy": accuracies}
    (folder / "results.json").write_text(json.dumps({
        "format": "p2c-results", "finished": True, "mode": "train", "trainer": trainer, "dataset": dataset,
        "subsample_classes": "all", "num_shots": 16, "seed": seed, "split": "test", "metrics": metrics,
        "config": {"DATASET": {"ROOT": str(root)}}, "data": {"classnames": names}, **record}))
    with open(folder / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "class", "predicted_label", "predicted_class", "probability"])
        writer.writerows([path, label, names[label], predicted, names[predicted], probability]
                         for path, label, predicted, probability in rows)


def no_words(folder):
    raise FileNotFoundError("the weights are not here")


ROWS = [("a.png", 0, 0, 0.9), ("b.png", 0, 1, 0.7), ("c.png", 1, 0, 0.95), ("d.png", 1, 1, 0.6), ("e.png", 2, 2, 0.5),
        ("gone.png", 2, 0, 0.4)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The page on two seeds of MaPLe and one run of CoOp on the same images, of which one is gone."""
    tmp_path = tmp_path_factory.mktemp("report")
    for path, *_ in ROWS[:-1]:
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.new("RGB", (200, 100), (90, 20, 20)).save(tmp_path / "data" / path)
    for seed in (1, 2):
        write_run(tmp_path / f"out/maple/seed{seed}", tmp_path / "data", ROWS, seed=seed)
    others = [(path, label, label if path == "gone.png" else predicted, probability)
              for path, label, predicted, probability in ROWS]
    write_run(tmp_path / "out/coop", tmp_path / "data", others, trainer="CoOp")
    (tmp_path / "out/maple/seed1/tensorboard").mkdir()
    writer = CurveWriter(str(tmp_path / "out/maple/seed1/tensorboard"))
    for step in range(500):
        writer.add_scalar("train/loss", 3 - step / 250, step)
        writer.add_scalar("train/noise", 0.25, step)
    writer.close()
    return make_page([str(tmp_path / "out")], no_words)


@pytest.fixture
def page(text):
    return Page(text)


def test_the_page_is_one_whole_file(text, page):
    links = [value for _, attributes in page.elements for name, value in attributes.items()
             if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")]
    assert links and all(re.match("#|data:image/jpeg;base64,", link) for link in links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not any(page.all(tag) for tag in ("script", "link", "iframe"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link["href"][1:] in ids for link in page.all("a"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg")) and page.all("svg")
    assert all(image["alt"] for image in page.all("img"))
    for rows in page.tables:
        assert len({len(row) for row in rows}) == 1


def test_names_are_shown_as_they_are(page):
    assert [row[0] for row in page.table("Class")] == NAMES
    assert not page.all("b") or all(not attributes for attributes in page.all("b"))
    assert page.text.count('cat & <b>"dog"') > 3


def test_numbers_are_means_over_seeds_by_method(page):
    summary = {row[0]: row[1:] for row in page.table("Method")}
    assert summary["MaPLe"][0] == "50.00 ± 0.00" and summary["MaPLe"][-1] == "1, 2"
    assert summary["CoOp"][0] == "66.67" and summary["CoOp"][2] == "–"
    assert page.table("Class") == [[NAMES[0], "50.0", "50.0"], [NAMES[1], "50.0", "50.0"], ["yak", "100.0", "50.0"]]
    matrices = [rows for rows in page.tables if rows[0] == ["", *NAMES]]
    assert matrices[0][3] == ["yak", "", "", "2"] and matrices[1][3] == ["yak", "2", "", "2"]  # CoOp, MaPLe: two seeds


def test_wrong_images_come_by_confidence_and_right_ones_by_class(page):
    assert [image["alt"] for image in page.all("img")] == ["c.png", "b.png", "a.png", "d.png", "e.png"]
    assert page.text.count("image not found") == 1
    assert f"✓ CoOp: yak, 40% ✗ MaPLe: {NAMES[0]}, 40%" in page.text


def test_curves_end_where_the_training_ends(page):
    assert page.table("Loss") == [["seed 1", "3", "1.004"]]
    assert page.table("Noise level") == [["all seeds", "0.25", "0.25"]]
    assert page.text.count("No nearest words: the weights are not here") == 2


def test_of_many_classes_the_most_frequent_confusions_are_listed(tmp_path):
    names = [f"class {number}" for number in range(MATRIX + 1)]
    rows = [(f"{number}.png", number, number, 0.5) for number in range(len(names))]
    rows += [(f"x{number}.png", 3, 4, 0.5) for number in range(3)] + [("y.png", 4, 3, 0.5)]
    write_run(tmp_path / "out/run", tmp_path, rows, names=names)
    page = Page(make_page([str(tmp_path / "out")], no_words))
    assert page.table("Class", "Predicted") == [["class 3", "class 4", "3", "75%"], ["class 4", "class 3", "1", "50%"]]


@pytest.mark.parametrize("content", [
    None, "path,label\nx", "\0",
    "path,label,class,predicted_label,predicted_class,probability\na.png,0,cat,7,yak,0.5\n"])
def test_a_run_without_its_predictions_is_shown_without_them(tmp_path, content):
    write_run(tmp_path / "out/old", tmp_path, ROWS)
    (tmp_path / "out/old/predictions.csv").unlink()
    if content is not None:
        (tmp_path / "out/old/predictions.csv").write_text(content)
    page = Page(make_page([str(tmp_path / "out")], no_words))
    assert page.table("Method")[0][1] == "50.00" and not page.all("img")
    assert "1 of these runs have no predictions" in page.text


def test_benchmarks_have_the_tables_of_the_aggregator(tmp_path, capsys):
    for half, classes in (("train_base", "base"), ("test_new", "new")):
        for seed in (1, 2):
            run = tmp_path / f"out/base2new/{half}/oxford_pets/shots_16/MaPLe/vit_b16_c2_ep5/seed{seed}"
            write_run(run, tmp_path, ROWS, dataset="OxfordPets", seed=seed, subsample_classes=classes)
    assert parse_test_res.main(["--base2new", str(tmp_path / "out"), "--format", "markdown"]) == 0
    expected = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()
                if line.startswith("|") and "---" not in line]
    page = Page(make_page([str(tmp_path / "out")], no_words))
    found = [row for rows in page.tables for row in rows]
    assert len(expected) > 12 and found[:len(expected)] == expected
    assert any("Published" in row for row in expected)


def test_a_training_is_reported_with_its_words(call, tmp_path, pets, capsys):
    assert call(trainer="MaPLe", out="out/run") == 0
    capsys.readouterr()
    assert report.main([str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"Report: {tmp_path / 'page.html'}\n"
    page = Page((tmp_path / "page.html").read_text())
    assert page.table("Part", "Layer", "Token")[0][:3] == ["context", "0", "1"]
    metrics = read_results(str(tmp_path / "out/run"))["metrics"]
    assert page.table("Method")[0][1] == f"{metrics['accuracy']:.2f}"
    assert [float(row[1]) for row in page.table("Class")] == [round(value, 1) for value in metrics["class_accuracy"]]
    assert page.all("img") and "image not found" not in page.text


def test_folders_without_runs_are_a_mistake(tmp_path, capsys):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(SystemExit, match="2"):
            report.main([str(folder), "--html", str(tmp_path / "page.html")])
        error = capsys.readouterr().err
        assert error.startswith("error: ") and str(folder) in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme, background", [(0, (20, 23, 27)), (1, (255, 255, 255))])
def test_a_browser_shows_it_on_a_phone_in_both_schemes(text, tmp_path, scheme, background):
    (tmp_path / "page.html").write_text(text)
    (tmp_path / "phone.html").write_text(
        '<body style="margin:0"><iframe src="page.html" style="width:390px;height:800px;border:0" onload="'
        'document.title = this.contentDocument.documentElement.scrollWidth"></iframe>')
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=500,800",
               "--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={scheme}",
               f"--user-data-dir={tmp_path / 'profile'}"]

    def browse(*options: str) -> str:
        done = subprocess.run([*command, *options, f"file://{tmp_path / 'phone.html'}"], capture_output=True, text=True,
                              timeout=60, check=True)
        return done.stdout

    assert "<title>390</title>" in browse("--dump-dom")  # nothing is wider than the screen
    browse(f"--screenshot={tmp_path / 'shot.png'}")
    with Image.open(tmp_path / "shot.png") as shot:
        phone = shot.convert("RGB").crop((0, 0, 390, 800))
    assert phone.getpixel((2, 2)) == background
    assert len(phone.getcolors(390 * 800)) > 50  # text and figures


@pytest.mark.parametrize("as_shown, size", [(False, (40, 20)), (True, (20, 40))])
def test_a_picture_is_read_as_the_run_has_read_it(tmp_path, as_shown, size):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.jpg", exif=exif)
    content = thumbnail(str(tmp_path / "photo.jpg"), as_shown).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == size
