"""Fetching one file: resumed, checked, whole under its name or not there; from a server with real ones' faults."""
import hashlib
import inspect
import json
import os
import signal
import threading
from pathlib import Path

import gdown
import pytest
from download_fixtures import HTML, Drive, no_drive, start, until

from p2c.download import fetch as fetching
from p2c.download import places
from p2c.download.fetch import FetchError, Remote, fetch

CONTENT = bytes(range(256)) * 4000  # 1 MB
HASH = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture(autouse=True)
def shown(caplog):
    caplog.set_level("INFO", "p2c.download")
    return caplog


def get(folder, *sources, accept=None, drive=no_drive, **known):
    """Fetch CONTENT as data.bin; the target."""
    fetch(Remote("data.bin", sources, **known), folder / "data.bin", accept, drive)
    return folder / "data.bin"


def part(folder, content):
    (folder / "data.bin.part").write_bytes(content)


def test_a_file_arrives_whole_and_nothing_else_is_left(tmp_path, server):
    path = get(tmp_path, server.put("/a", CONTENT), size=len(CONTENT), digest=HASH)
    assert path.read_bytes() == CONTENT and os.listdir(tmp_path) == ["data.bin"]


def test_what_arrived_before_is_not_asked_for_again(tmp_path, server):
    part(tmp_path, CONTENT[:300_000])
    assert get(tmp_path, server.put("/a", CONTENT), digest=HASH).read_bytes() == CONTENT
    assert server.requests == [("/a", "bytes=300000-")]


def test_a_server_that_knows_no_ranges_starts_again(tmp_path, server):
    part(tmp_path, b"x" * 300_000)
    assert get(tmp_path, server.put("/a", CONTENT, ranges=False)).read_bytes() == CONTENT


def test_a_broken_connection_is_resumed_until_the_file_is_whole(tmp_path, server):
    url = server.put("/a", CONTENT, dies_after=[100_000, 5, 400_000])
    assert get(tmp_path, url).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=100005-", "bytes=500005-"]


def test_a_connection_that_brings_nothing_fails_and_keeps_what_there_is(tmp_path, server, shown):
    with pytest.raises(FetchError):
        get(tmp_path, server.put("/a", CONTENT, dies_after=[100_000, 0]))
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:100_000]
    assert "ended after 100000 of 1024000 bytes" in shown.text and not (tmp_path / "data.bin").exists()


def test_a_part_of_another_file_is_fetched_again_from_the_start(tmp_path, server):
    part(tmp_path, b"x" * 300_000)
    assert get(tmp_path, server.put("/a", CONTENT), digest=HASH).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=300000-", None]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 10])
def test_a_part_that_is_whole_or_too_long_ends_well(tmp_path, server, length):
    part(tmp_path, (CONTENT + b"y" * 10)[:length])
    assert get(tmp_path, server.put("/a", CONTENT)).read_bytes() == CONTENT


def test_a_redirect_is_followed(tmp_path, server):
    goal = server.put("/goal", CONTENT)
    assert get(tmp_path, server.put("/a", redirect=goal)).read_bytes() == CONTENT


@pytest.mark.parametrize("faults, known, reason", [
    ({"content": CONTENT, "status": 404}, {}, "404"),
    ({"content": HTML, "kind": "text/html; charset=utf-8"}, {}, "web page"),
    ({"content": b"\n  " + HTML}, {}, "web page"),
    ({"content": b""}, {}, "empty"),
    ({"content": CONTENT}, {"size": 5}, "1024000 bytes"),
    ({"content": CONTENT[:-1] + b"!"}, {"digest": HASH}, "SHA256"),
    ({"content": CONTENT}, {"digest": "md5:" + "0" * 32}, "MD5"),
])
def test_a_wrong_answer_is_refused_and_the_next_source_tried(tmp_path, server, shown, faults, known, reason):
    bad, good = server.put("/bad", **faults), server.put("/good", CONTENT)
    with pytest.raises(FetchError, match="data.bin"):
        get(tmp_path, bad, **known)
    assert reason in shown.text
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".part")] == []
    if "size" not in known and "md5" not in known.get("digest", ""):
        assert get(tmp_path, bad, good, **known).read_bytes() == CONTENT


def test_an_archive_that_is_none_is_refused(tmp_path, server, shown):
    remote = Remote("images.tar.gz", (server.put("/a", b"no archive" * 99),))
    with pytest.raises(FetchError):
        fetch(remote, tmp_path / "images.tar.gz", drive=no_drive)
    assert "not an archive" in shown.text


def test_what_accept_refuses_gives_way_to_the_next_source(tmp_path, server):
    def accept(path):
        json.loads(path.read_text())

    sources = server.put("/a", b'{"train": ['), server.put("/b", b"{}")
    assert get(tmp_path, *sources, accept=accept).read_bytes() == b"{}"


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path, server, monkeypatch):
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: places.shutil._ntuple_diskusage(1, 1, 10**6))
    with pytest.raises(places.NoSpace, match="needs 1.02 MB .* has 1 MB free"):
        get(tmp_path, server.put("/a", CONTENT))
    assert os.listdir(tmp_path) == []


def test_nobody_there_is_a_failure_with_a_reason(tmp_path, shown):
    with pytest.raises(FetchError):
        get(tmp_path, "http://127.0.0.1:9/nothing")
    assert "cannot connect" in shown.text


# Google Drive

def test_gdown_takes_what_it_is_called_with():
    inspect.signature(gdown.download).bind(id="abc", output="data.bin", quiet=True, resume=True)


def test_drive_is_asked_by_id_and_its_file_checked(tmp_path):
    drive = Drive(abc=CONTENT)
    assert get(tmp_path, "drive:abc", drive=drive, digest=HASH).read_bytes() == CONTENT
    assert drive.calls == ["abc"] and os.listdir(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("answer, reason", [
    (HTML, "web page"), (CONTENT[:10], "10 bytes"), (PermissionError("Too many users"), "Too many users")])
def test_an_over_quota_page_of_drive_is_refused_and_the_mirror_tried(tmp_path, server, shown, answer, reason):
    drive = Drive(abc=answer)
    path = get(tmp_path, "drive:abc", server.put("/a", CONTENT), drive=drive, size=len(CONTENT))
    assert path.read_bytes() == CONTENT and reason in shown.text
    assert os.listdir(tmp_path) == ["data.bin"]


def test_drive_goes_on_where_it_was_killed_and_starts_again_if_that_was_wrong(tmp_path):
    calls = []

    def drive(*, id, output, quiet, resume):
        place = Path(output).parent
        calls.append(resume and sorted(os.listdir(place)))
        begun = next(place.iterdir(), place / "data.bin123.part")
        content = begun.read_bytes() if begun.exists() else b""
        if len(calls) == 1:
            begun.write_bytes(b"x" * 500)  # of a file that has changed since
            raise ConnectionError("reset")
        begun.write_bytes(content + CONTENT[len(content):])
        begun.rename(output)

    with pytest.raises(FetchError):
        get(tmp_path, "drive:abc", drive=drive, digest=HASH)
    assert get(tmp_path, "drive:abc", drive=drive, digest=HASH).read_bytes() == CONTENT
    assert calls == [[], ["data.bin123.part"], []]


def test_a_file_that_gdown_will_not_resume_is_fetched_from_the_start(tmp_path):
    (tmp_path / "data.bin.drive.part").mkdir()
    (tmp_path / "data.bin.drive.part" / "data.bin123.part").write_bytes(b"x")

    def drive(*, id, output, quiet, resume):
        if os.listdir(Path(output).parent):
            raise RuntimeError("Server did not honor the requested byte range")
        Path(output).write_bytes(CONTENT)

    assert get(tmp_path, "drive:abc", drive=drive).read_bytes() == CONTENT


# Killed, interrupted, twice at once

def fetch_locked(folder, url):
    """As `install` does."""
    with places.locked(folder):
        if not (folder / "data.bin").exists():
            get(folder, url, digest=HASH)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_download_leaves_a_part_that_the_next_call_resumes(tmp_path, server, how):
    url = server.put("/a", CONTENT, wait=threading.Event())
    process = start(fetch_locked, tmp_path, url)
    until(lambda: (tmp_path / "data.bin.part").exists() and (tmp_path / "data.bin.part").stat().st_size)
    os.kill(process.pid, how)
    process.join(30)
    assert sorted(os.listdir(tmp_path)) == [places.LOCK, "data.bin.part"]
    arrived = (tmp_path / "data.bin.part").stat().st_size
    assert 0 < arrived < len(CONTENT)
    server.put("/a", CONTENT)
    assert get(tmp_path, url, digest=HASH).read_bytes() == CONTENT
    assert server.requests[-1] == ("/a", f"bytes={arrived}-")


def test_two_processes_fetch_a_file_once(tmp_path, server):
    go = threading.Event()
    url = server.put("/a", CONTENT, wait=go)
    processes = [start(fetch_locked, tmp_path, url) for _ in range(2)]
    until(lambda: server.requests)
    go.set()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and len(server.requests) == 1


def test_unencrypted_redirects_need_a_hash(tmp_path, monkeypatch):
    """As a redirect from https to http answers; the connection itself is made up."""
    class Response:
        url, status, headers = "http://elsewhere/a", 200, None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: Response())
    with pytest.raises(FetchError, match="not encrypted"):
        fetching._transfer("https://here/a", tmp_path / "a.part", Remote("a"))
