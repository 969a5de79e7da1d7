"""A local server with the faults of real ones, a stand-in for Google Drive, and miniature archives."""
import contextlib
import io
import multiprocessing
import signal
import tarfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

HTML = b"<!DOCTYPE html><html><title>Quota exceeded</title></html>"


@dataclass
class Page:
    """What the server answers to a path."""

    content: bytes = b""
    ranges: bool = True  # whether Range is honoured
    dies_after: list[int] = field(default_factory=list)  # bytes after which each of the first answers breaks off
    announce: int | None = None  # a Content-Length that is not true
    kind: str = "application/octet-stream"
    status: int = 200
    redirect: str = ""
    wait: threading.Event | None = None  # answers half, and the rest when this is set


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        page = self.server.pages.get(self.path)
        self.server.requests.append((self.path, self.headers.get("Range")))
        if page is None:
            return self.send_error(404)
        if page.redirect:
            self.send_response(302)
            self.send_header("Location", page.redirect)
            return self.end_headers()
        content, start = page.content, 0
        asked = self.headers.get("Range")
        if asked and page.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(page.status)
        body = content[start:]
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(body) if page.announce is None else page.announce))
        self.end_headers()
        if page.dies_after:
            body = body[:page.dies_after.pop(0)]
        if page.wait:
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            page.wait.wait(20)
            body = body[len(body) // 2:]
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """pages: path -> Page. requests: (path, Range) of every request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.requests = {}, []

    def put(self, path, content=b"", **faults):
        """Serve a path; returns its URL."""
        self.pages[path] = Page(content, **faults)
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


class Drive:
    """What gdown.download is called for: a file by id, its content or the exception it fails with."""

    def __init__(self, **files):
        self.files, self.calls = files, []

    def __call__(self, *, id, output, quiet, resume):
        self.calls.append(id)
        content = self.files.get(id, PermissionError("Cannot retrieve the public link of the file"))
        if isinstance(content, Exception):
            raise content
        Path(output).write_bytes(content)
        return output


def no_drive(**_):
    raise AssertionError("Google Drive is not to be asked")


# Archives, as bytes

def tar_of(files, compression="gz"):
    """files: inner path -> bytes, or a tarfile.TarInfo -> None. compression "" makes a plain tar."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            if isinstance(name, tarfile.TarInfo):
                archive.addfile(name)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def zip_of(files):
    """files: inner path or a zipfile.ZipInfo -> bytes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def files_below(folder, prefix=""):
    """path below the folder -> bytes, hidden files left out."""
    return {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)}


# Processes that are stopped on the way

def start(work, *args):
    """A process that does `work` and answers signals as the command does."""
    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        work(*args)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def until(condition):
    """Wait until the condition holds in another process."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
