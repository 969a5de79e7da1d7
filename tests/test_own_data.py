"""The documented way from a folder of images to a trained P2C to predictions, command by command."""
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


def test_the_three_documented_commands_train_measure_and_predict(tmp_path):
    page = (ROOT / "docs/own_data.md").read_text()
    block = re.search(r"## A folder of images, three commands\n```bash\n(.+?)```", page, re.S)[1]
    commands = block.strip().splitlines()
    assert len(commands) == 3
    for name in ("scripts", "configs", "train.py", "parse_test_res.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    draw_photos(tmp_path / "photos", (0, 6, 14), 32)
    draw_photos(tmp_path / "new_photos", (0, 14), 4)
    (tmp_path / "new_photos" / "broken.png").write_bytes(b"no image")
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                 "CFG": "tiny_shapes"}
    done = [subprocess.run(["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True)
            for command in commands]
    training, table, prediction = done
    assert training.returncode == 0, training.stderr
    assert re.search(r"Results: output/photos-[0-9a-f]{8}/P2C/tiny_shapes_16shots/seed1/results.json", training.stdout)
    assert table.returncode == 0 and re.search(r"\* accuracy: [\d.]+% \+- 0.00%", table.stdout), table.stderr
    assert prediction.returncode == 1 and "1 of 9" in prediction.stderr
    right = [line for line in prediction.stdout.splitlines()
             if line.split("/")[1] == re.search(r": (.+?) [\d.]+%", line)[1]]
    assert len(prediction.stdout.splitlines()) == 8 and len(right) >= 6  # of 3 classes, chance would give 2 or 3
