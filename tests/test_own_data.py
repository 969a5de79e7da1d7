"""The documented way from a folder of images to a trained P2C to predictions, from any folder, command by command."""
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from p2c.datasets.shapes import COMPOSITIONS, picture

ROOT = Path(__file__).resolve().parents[1]


def draw_photos(folder, labels, count):
    """Pictures of some classes of shapes, in class folders, that are in no dataset."""
    for label in labels:
        place = folder / COMPOSITIONS[label].replace(" ", "_")
        place.mkdir(parents=True)
        for index in range(count):
            Image.fromarray(picture("shapes", str(folder.name), label, index)).save(place / f"{index}.png")


def test_the_three_documented_commands_train_report_and_predict(tmp_path):
    page = (ROOT / "docs/own_data.md").read_text()
    block = re.search(r"## A folder of images, three commands\n```bash\n(.+?)```", page, re.S)[1]
    training, report, prediction = [line.partition(" #")[0] for line in block.strip().splitlines()]
    training += " --backbone tiny-shapes"
    draw_photos(tmp_path / "photos", (0, 6, 14), 32)
    draw_photos(tmp_path / "new_photos", (0, 14), 4)
    (tmp_path / "new_photos" / "broken.png").write_bytes(b"no image")
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    trained, reported, predicted = [
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True)
        for command in (training, report, prediction)]
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"\* accuracy: [\d.]+%", trained.stdout)
    assert "p2c predict leaves IMAGES" in trained.stdout.splitlines()[-1]
    assert reported.returncode == 0, reported.stderr
    page = (tmp_path / "report.html").read_text()
    assert all(COMPOSITIONS[label] in page.replace("_", " ") for label in (0, 6, 14))
    assert predicted.returncode == 1 and "1 of 9" in predicted.stderr
    right = [line for line in predicted.stdout.splitlines()
             if line.split("/")[1] == re.search(r": (.+?) [\d.]+%", line)[1]]
    assert len(predicted.stdout.splitlines()) == 8 and len(right) >= 6  # of 3 classes, chance would give 2 or 3
