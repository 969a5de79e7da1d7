"""One process in an output folder: who is told what, and whose lock is taken over."""
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from p2c.engine import lock
from p2c.engine.lock import FILE, STALE, FolderInUse, folder_lock


@pytest.fixture
def others(tmp_path):
    """others(key=value, ..., age=): leave a lock, of this process unless told otherwise."""
    def leave(age=0.0, **owner):
        path = tmp_path / FILE
        path.write_text(json.dumps({**lock._myself(), "id": "other", **owner}))
        now = path.stat().st_mtime
        os.utime(path, (now - age, now - age))
        return path
    return leave


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_second_process_is_told_who_has_the_folder(tmp_path):
    with folder_lock(tmp_path / "run") as note:
        assert note == ""
        owner = json.loads((tmp_path / "run" / FILE).read_text())
        with pytest.raises(FolderInUse) as refused, folder_lock(tmp_path / "run"):
            pass
        message = str(refused.value)
        assert f"{owner['host']}, process {os.getpid()}, since {owner['since']}" in message and "\n" not in message
        assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]
    assert list((tmp_path / "run").iterdir()) == []


def test_the_lock_goes_with_an_error(tmp_path):
    with pytest.raises(KeyError), folder_lock(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("age", [0, 10 * STALE])
def test_a_living_process_of_this_machine_keeps_its_lock_however_long_it_sleeps(others, tmp_path, age):
    others(age)
    with pytest.raises(FolderInUse), folder_lock(tmp_path):
        pass


def test_the_lock_of_a_process_that_is_gone_is_taken_over(others, tmp_path):
    pid = gone()
    path = others(pid=pid, started="1")
    with folder_lock(tmp_path) as note:
        assert f"process {pid}" in note and "from a run that died" in note and "\n" not in note
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_not_the_owner(others, tmp_path):
    others(started="1")
    with folder_lock(tmp_path) as note:
        assert note


@pytest.mark.parametrize("pid", [None, os.getpid()], ids=["gone", "alive"])
def test_another_machines_lock_is_judged_by_its_last_sign_of_life(others, tmp_path, pid):
    others(STALE - 20, machine="elsewhere", host="node7", pid=pid or gone())
    with pytest.raises(FolderInUse, match="node7"), folder_lock(tmp_path):
        pass
    others(STALE + 20, machine="elsewhere", host="node7", pid=pid or gone())
    with folder_lock(tmp_path) as note:
        assert "node7" in note


def test_a_lock_without_content_is_judged_by_its_age(others, tmp_path):
    path = others()
    path.write_text("")
    with pytest.raises(FolderInUse, match="unknown"), folder_lock(tmp_path):
        pass
    os.utime(path, (1, 1))
    with folder_lock(tmp_path) as note:
        assert note


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with folder_lock(tmp_path):
        os.utime(tmp_path / FILE, (1, 1))
        for _ in range(500):
            if (tmp_path / FILE).stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert (tmp_path / FILE).stat().st_mtime > 1


def test_of_many_that_find_a_dead_lock_one_gets_it(others, tmp_path):
    others(pid=gone(), started="1")
    start, end, got, refused = threading.Barrier(8), threading.Event(), [], []

    def contend():
        start.wait()
        try:
            with folder_lock(tmp_path):
                got.append(1)
                end.wait(10)
        except FolderInUse:
            refused.append(1)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        if len(got) + len(refused) == 8:
            break
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)


def test_a_lock_that_another_has_taken_over_stays(tmp_path):
    with folder_lock(tmp_path):
        (tmp_path / FILE).write_text('{"id": "another"}')
    assert (tmp_path / FILE).read_text() == '{"id": "another"}'
