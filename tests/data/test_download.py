"""Downloads from a server on loopback that misbehaves (rows 21 and 22 of the list of faults)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from attn_cli.data import download as module
from attn_cli.data.download import download
from attn_cli.data.prepare import prepare
from attn_cli.data.sources import mnist
from attn_cli.errors import Refused

CONTENT = bytes(range(256)) * 2000  # several blocks
MD5 = hashlib.md5(CONTENT).hexdigest()
HTML = b"<html><body>Please log in</body></html>"


class Server(BaseHTTPRequestHandler):
    """/WAY/file.gz answers in the way that the first part of the path names."""

    asked: list[str] = []

    def do_GET(self) -> None:
        way = self.path.split("/")[1]
        self.asked.append(way)
        if way == "unavailable":
            self.send_error(503)
            return
        body = {"good": CONTENT, "html": HTML, "cut": CONTENT, "wrong": CONTENT[:-1] + b"!", "long": CONTENT + b"!"}
        if way == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        if way == "twice" and self.asked.count("twice") == 1:
            self.send_error(500)
            return
        content = body.get(way, CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if way == "cut" else content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(module, "PAUSE", 0.0)
    Server.asked = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def fetch(folder: Path, *mirrors: str, log: list[str] | None = None) -> Path:
    lines: list[str] = [] if log is None else log
    return download("file.gz", MD5, len(CONTENT), [f"{mirror}/" for mirror in mirrors], folder, log=lines.append)


def test_downloads_and_then_uses_the_cache(server: str, tmp_path: Path) -> None:
    log: list[str] = []
    path = fetch(tmp_path / "cache", f"{server}/good", log=log)
    assert path == tmp_path / "cache" / "file.gz" and path.read_bytes() == CONTENT
    assert len(log) == 1 and f"{server}/good/file.gz" in log[0] and "0.5 MB" in log[0]
    assert fetch(tmp_path / "cache", f"{server}/good") == path and Server.asked == ["good"]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("html", f"expected md5 {MD5}, got {hashlib.md5(HTML).hexdigest()}"),
        ("wrong", f"expected md5 {MD5}, got {hashlib.md5(CONTENT[:-1] + b'!').hexdigest()}"),
        ("cut", "the connection was cut"),
        ("unavailable", "503 Service Unavailable"),
        ("long", f"more than the {len(CONTENT):,} bytes"),
        ("endless", f"more than the {len(CONTENT):,} bytes"),
    ],
)
def test_a_bad_answer_is_refused_and_leaves_nothing(way: str, said: str, server: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        fetch(tmp_path, f"{server}/{way}")
    sentence = str(refused.value)
    assert said in sentence and f"{server}/{way}/file.gz" in sentence and "\n" not in sentence
    assert list(tmp_path.iterdir()) == []
    assert Server.asked == [way] * module.ROUNDS


def test_nobody_listens(server: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no connection"):
        fetch(tmp_path, "http://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


def test_the_next_mirror_and_the_next_round(server: str, tmp_path: Path) -> None:
    assert fetch(tmp_path, f"{server}/html", f"{server}/cut", f"{server}/good").read_bytes() == CONTENT
    assert Server.asked == ["html", "cut", "good"]
    assert fetch(tmp_path / "other", f"{server}/twice").read_bytes() == CONTENT
    assert Server.asked[3:] == ["twice", "twice"]


def test_a_flipped_byte_in_the_cache_is_fetched_again(server: str, tmp_path: Path) -> None:
    path = fetch(tmp_path, f"{server}/good")
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 4
    path.write_bytes(damaged)
    log: list[str] = []
    assert fetch(tmp_path, f"{server}/good", log=log).read_bytes() == CONTENT
    assert "file.gz is damaged" in log[0] and MD5 in log[0]
    path.write_bytes(damaged)
    with pytest.raises(Refused):
        fetch(tmp_path, f"{server}/unavailable")
    assert not path.exists()


def test_prepare_refuses_what_a_mirror_sends(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command down to the socket: nothing that counts is left."""
    monkeypatch.setattr(mnist, "MIRRORS", (f"{server}/html/", f"{server}/unavailable/"))
    with pytest.raises(Refused) as refused:
        prepare("mnist", tmp_path, log=lambda line: None)
    assert mnist.FILES["train_images"].md5 in str(refused.value) and "503" in str(refused.value)
    assert "--from" in str(refused.value)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".mnist.h5.lock"]
