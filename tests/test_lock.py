"""The lock of an output folder: what a second process sees, and what a dead owner leaves behind."""
import multiprocessing
import os
import re
import threading
import time

import pytest
from messages import naming

from p2c.engine.lock import FILE, OWNER, FolderInUse, folder_lock

FORK = multiprocessing.get_context("fork")


def hold(folder, held):
    with folder_lock(folder):
        held.set()
        time.sleep(100)


def take_turns(folder, inside, times):
    """Lock a folder `times` times; fails if another process holds it meanwhile."""
    while times:
        try:
            with folder_lock(folder):
                os.mkdir(inside)
                os.rmdir(inside)
                times -= 1
        except FolderInUse:
            pass


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of the folder."""
    held = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_second_process_is_told_who_has_the_folder(tmp_path, holder):
    owner = (tmp_path / OWNER).read_text()
    assert owner.startswith(f"{os.uname().nodename}, process {holder.pid}, since 2")
    with pytest.raises(FolderInUse) as refused, folder_lock(tmp_path):
        pass
    assert re.search(naming(tmp_path, owner), str(refused.value)) and "\n" not in str(refused.value)
    assert names(tmp_path) == [FILE, OWNER] and (tmp_path / OWNER).read_text() == owner


def test_an_owner_that_cannot_be_read_is_unknown(tmp_path, holder):
    (tmp_path / OWNER).unlink()
    with pytest.raises(FolderInUse, match=naming(tmp_path, "unknown")), folder_lock(tmp_path):
        pass
    (tmp_path / OWNER).write_bytes(b"\xff\n\0\nx")
    with pytest.raises(FolderInUse) as refused, folder_lock(tmp_path):
        pass
    assert "\n" not in str(refused.value)


def test_a_process_that_died_is_no_obstacle_and_its_successor_says_so(tmp_path, holder):
    owner = (tmp_path / OWNER).read_text()
    holder.kill()
    holder.join()
    assert names(tmp_path) == [FILE, OWNER]
    with folder_lock(tmp_path) as note:
        assert re.search(naming(tmp_path, owner), note)
        assert f"process {os.getpid()}, " in (tmp_path / OWNER).read_text()
    assert names(tmp_path) == []


def test_nothing_is_left_of_a_lock_that_was_released(tmp_path):
    with folder_lock(tmp_path / "run") as note:
        assert note == ""
    assert names(tmp_path / "run") == []
    with pytest.raises(KeyError), folder_lock(tmp_path / "run"):
        raise KeyError
    assert names(tmp_path / "run") == []


def test_of_many_at_once_one_gets_the_folder(tmp_path):
    begin, end, got, refused = threading.Barrier(8), threading.Event(), [], []

    def contend():
        begin.wait()
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


def test_the_file_of_a_lock_is_deleted_without_two_having_it(tmp_path):
    """A process that opened the file just before its owner deleted it must not take the old one for the lock."""
    contenders = [FORK.Process(target=take_turns, args=(tmp_path / "run", tmp_path / "inside", 200)) for _ in range(3)]
    for contender in contenders:
        contender.start()
    for contender in contenders:
        contender.join(100)
    assert [contender.exitcode for contender in contenders] == [0, 0, 0] and names(tmp_path / "run") == []
