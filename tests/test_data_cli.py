"""`python -m p2c data`: what it says and how it ends. The downloads themselves are tested in test_downloads_*.py."""
import logging
import os
import re
import runpy
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from data_trees import save_image, write_split_tree
from download_fixtures import Drive, files_below, no_drive, start, tar_of, until
from messages import naming

from p2c.cli.data import main, parse_args
from p2c.datasets.base import Sizes
from p2c.datasets.dtd import DescribableTextures as DTD
from p2c.datasets.trees import images_below
from p2c.download.sources import SOURCES


@pytest.fixture
def dtd(tmp_path, server, monkeypatch):
    """The miniature DTD's tree, outside the data root, and a table with its archive on the server."""
    tree = write_split_tree(tmp_path / "original", "dtd")
    monkeypatch.setattr(DTD, "sizes", Sizes(3, 9, 6, 6))
    monkeypatch.setattr(DTD, "split_sha256", "")
    content = tar_of({**files_below(tree / "images", "dtd/images/"), "dtd/imdb/imdb.mat": os.urandom(100_000)})
    archive = replace(SOURCES["dtd"].parts[0][0], sources=(server.put("/dtd", content),), size=len(content), digest="")
    return tree, {"dtd": replace(SOURCES["dtd"], parts=((archive,),))}


@pytest.fixture
def command(dtd, tmp_path, capsys):
    """command(word, ...): (exit status, output) with the data root tmp_path/data."""
    tree, sources = dtd

    def run(*words, drive=None):
        drive = drive or Drive(**{DTD.split_id: (tree / DTD.split).read_bytes()})
        status = main([*words, "--root", str(tmp_path / "data")], sources, drive)
        return status, capsys.readouterr().out
    return run


def test_download_then_verify_then_list(command):
    status, said = command("download", "dtd")
    assert status == 0 and said.splitlines()[0] == "== dtd" and said.splitlines()[-1] == "dtd: complete"
    status, said = command("verify", "dtd", "--full")
    assert status == 0 and "3 classes, 9 training, 6 validation and 6 test images" in said
    assert "21 of 21 images opened" in said
    status, said = command("list")
    assert status == 0 and "complete" in said


def test_a_failed_download_says_what_to_do_by_hand(command, server, tmp_path):
    server.pages["/dtd"].status = 404
    status, said = command("download", "dtd", drive=Drive())
    assert status == 1 and "answers 404" in said and "dtd: complete" not in said
    by_hand = said[said.index("By hand:"):]
    assert "/dtd" in by_hand and f"put {DTD.split} into {tmp_path / 'data/dtd'}" in by_hand
    assert f"https://drive.google.com/file/d/{DTD.split_id}" in by_hand
    assert f"python -m p2c data download dtd --root {tmp_path / 'data'}" in by_hand


def test_the_other_datasets_go_on_after_a_failure_and_a_summary_ends_it(dtd, tmp_path, capsys):
    tree, sources = dtd
    sources = {"eurosat": replace(SOURCES["eurosat"], parts=((replace(SOURCES["eurosat"].parts[0][0], sources=()),),)),
               **sources}
    drive = Drive(**{DTD.split_id: (tree / DTD.split).read_bytes()})
    assert main(["download", "all", "--root", str(tmp_path / "data")], sources, drive) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["eurosat  NOT COMPLETE", "dtd      complete"]


def test_a_full_disk_is_a_line_and_not_a_traceback(command, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: (0, 0, 0))
    monkeypatch.setattr("p2c.download.places.shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    status, said = command("download", "dtd")
    assert status == 1 and "make room" in said


def test_verify_lists_everything_that_is_wrong(command, tmp_path):
    command("download", "dtd")
    first, second, third, *_ = images_below(tmp_path / "data/dtd")
    os.remove(first)
    Path(second).write_bytes(Path(second).read_bytes()[:200])
    Path(third).write_bytes(b"")
    status, said = command("verify", "dtd")
    faults = [line for line in said.splitlines() if line.startswith("error: dtd: ")]
    assert status == 1 and len(faults) == 3
    assert first in faults[0] and "1 of 21" in faults[0]
    assert all(any(path in fault for fault in faults[1:]) for path in (second, third))
    assert "18 of 20 images opened" in said


@pytest.mark.parametrize("spoil, fault", [
    (lambda folder: os.remove(folder / DTD.split), f"{DTD.split} is missing"),
    (lambda folder: (folder / DTD.split).write_text("<html>"), "web page"),
    (lambda folder: os.rename(folder / "images", folder / "jpg"), "images is missing"),
    (lambda folder: os.rename(folder, folder.parent / "DTD"), "No DescribableTextures at"),
])
def test_verify_says_what_is_missing_or_no_split(command, tmp_path, spoil, fault):
    command("download", "dtd")
    spoil(tmp_path / "data/dtd")
    status, said = command("verify", "dtd")
    assert status == 1 and fault in said and "p2c data download dtd" in said


def test_verify_names_other_numbers_than_the_published(command, monkeypatch):
    command("download", "dtd")
    monkeypatch.setattr(DTD, "sizes", Sizes(3, 9, 6, 7))
    status, said = command("verify", "dtd")
    assert status == 1 and re.search(naming("[9, 6, 6]", "[9, 6, 7]"), said)


def test_verify_opens_a_seeded_sample_or_with_full_all(command, monkeypatch):
    monkeypatch.setattr("p2c.download.verify.SAMPLE", 5)
    assert "5 of 5 images opened" in command("download", "dtd")[1]
    assert "21 of 21 images opened" in command("verify", "dtd", "--full")[1]


@pytest.mark.parametrize("spoil, state", [
    (lambda folder: shutil.rmtree(folder), "absent"),
    (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "absent"),
    (lambda folder: None, "complete"),
    (lambda folder: os.remove(folder / DTD.split), "split missing"),
    (lambda folder: (folder / DTD.split).write_text("<html>"), "split missing"),
    (lambda folder: os.rename(folder / "images", folder / "jpg"), "images missing"),
    (lambda folder: os.remove(images_below(folder)[0]), "images missing"),
])
def test_list_tells_what_there_is_without_opening_images(command, dtd, tmp_path, monkeypatch, spoil, state):
    monkeypatch.setattr("p2c.download.verify.read_image", None)
    spoil(shutil.copytree(dtd[0], tmp_path / "data/dtd"))
    status, said = command("list")
    name, found, folder, _, place = re.split("  +", said.splitlines()[-1])
    assert status == 0 and (name, found, folder) == ("dtd", state, str(tmp_path / "data/dtd")) and "127.0.0.1" in place


def test_a_folder_named_in_two_ways_is_verified_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    names = parse_args(["verify", "dtd", "folder:photos", "folder:./photos/", f"folder:{tmp_path}/photos", "dtd"],
                       {"dtd": None}).names
    assert names == ["dtd", "folder:photos"]


def test_a_user_folder_is_verified_too(tmp_path, capsys):
    for name in ("cat", "dog"):
        for index in range(4):
            save_image(tmp_path / "my photos" / name / f"{index}.png")
    assert main(["verify", f"folder:{tmp_path / 'my photos'}"]) == 0
    said = capsys.readouterr().out
    assert "2 classes, 4 training, 2 validation and 2 test images" in said and "8 of 8 images opened" in said
    (tmp_path / "my photos/cat/0.png").write_bytes(b"")
    split = tmp_path / "my photos/split_seed1.json"
    assert main(["verify", f"folder:{split}"]) == 1
    assert str(tmp_path / "my photos/cat/0.png") in capsys.readouterr().out


@pytest.mark.parametrize("words, named", [
    (["download", "nosuch"], ("'nosuch'", "all, imagenet, caltech101")),
    (["verify"], ("NAME",)), ([], ("download", "verify")),
    (["download", "dtd", "--root", __file__], ("--root",)),
    (["download", "folder:photos"], ("'folder:photos'",)),
    (["verify", "folder:/no/photos"], ("'/no/photos'",)),
])
def test_a_mistaken_call_is_one_line_and_status_2(words, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    answer = capsys.readouterr().err
    assert stopped.value.code == 2 and answer.startswith("error: ") and answer.count("\n") == 1
    assert re.search(naming(*named), answer)


def test_the_built_in_family_needs_no_download(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    assert main(["download", "shapes", "shapes_dark"], drive=no_drive) == 0
    assert "shapes_dark: nothing to download" in capsys.readouterr().out and os.listdir(tmp_path) == []


def test_interrupted_it_says_so_with_status_75_and_goes_on_next_time(dtd, server, tmp_path):
    tree, sources = dtd
    drive = Drive(**{DTD.split_id: (tree / DTD.split).read_bytes()})
    server.pages["/dtd"].wait = go_on = threading.Event()
    part = tmp_path / "data/dtd/fetched/dtd-r1.0.1.tar.gz.part"

    def run():
        sys.exit(main(["download", "dtd", "--root", str(tmp_path / "data")], sources, drive))

    process = start(run)
    until(lambda: part.exists() and part.stat().st_size)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 75 and part.exists()
    go_on.set()
    process = start(run)
    process.join(60)
    assert process.exitcode == 0 and server.requests[-1][1] and not part.exists()


def test_the_module_is_a_command_that_takes_its_root_from_DATA_and_stops_on_sigterm(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA", str(tmp_path / "my data"))
    monkeypatch.setattr(sys, "argv", ["p2c", "data", "list"])
    before, level = signal.getsignal(signal.SIGTERM), logging.getLogger("p2c.datasets").level
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module("p2c", run_name="__main__")
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
        logging.getLogger("p2c.datasets").setLevel(level)
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 0 and len(lines) == 1 + len(SOURCES) and all("absent" in line for line in lines[1:])
    assert str(tmp_path / "my data/caltech-101") in lines[2]
