"""Fetching over HTTP from a server that drops, refuses and lies."""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jowa.cli import main
from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.exchange import download as downloads
from jowa.exchange.download import NotThereError, Patience, download
from jowa.exchange.replay_source import Source
from jowa.games import get

from .conftest import Replay

CONTENT = bytes(range(256)) * 400
QUICK = Patience(retries=3, delay=0.001, timeout=5)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `tricks[path]` are done to its next answers, one each: a status to answer
    with, a number of bytes to send before the connection is dropped, or what a word says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tricks: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, str | None]] = []  # path and range
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are meant."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path)
        asked = self.headers["Range"]
        self.server.asked.append((path, asked))
        assert self.headers["Accept-Encoding"] == "gzip"
        trick = (self.server.tricks.get(path) or [None]).pop(0)
        if trick in (401, 404, 429, 500, 503):
            return self.send_error(trick)
        if path not in self.server.files:
            return self.send_error(404)
        content = self.server.files[path]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if trick == "no ranges":
            asked, start = None, 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return None
        self.send_response(206 if asked else 200)
        if asked:
            shown = start + (trick == "other range")
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        self.send_header("x-goog-hash", "crc32c=AAAAAA==")
        self.send_header("x-goog-hash", f"md5={md5}")
        self.end_headers()
        sent = content[start:]
        if trick == "lie":
            sent = bytes(len(sent))
        self.wfile.write(sent[:trick] if isinstance(trick, int) else sent)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def fetch(server: Server, path: Path, patience: Patience = QUICK) -> int:
    arrived: list[int] = []
    download(f"{server.url}/file", path, "the file", patience, arrived.append)
    return sum(arrived)


@pytest.mark.parametrize(
    ("tricks", "ranges", "bytes_sent"),
    [
        ([], [None], 102_400),
        ([100], [None, "bytes=100-"], 102_400),
        ([0, 0, 0], [None] * 4, 102_400),
        (
            [100, 200, 50, 300, 60, 80],
            [None, *(f"bytes={n}-" for n in (100, 300, 350, 650, 710, 790))],
            102_400,
        ),
        ([503, 429, 500], [None] * 4, 102_400),
        ([100, 503, "no ranges"], [None, "bytes=100-", "bytes=100-"], 102_500),
        ([100, "other range"], [None, "bytes=100-", "bytes=100-"], 102_400),
        (["lie"], [None, None], 204_800),
    ],
)  # fmt: skip
def test_a_file_arrives_whole_whatever_happens_on_the_way(
    server: Server, tmp_path: Path, tricks: list[Any], ranges: list[str | None], bytes_sent: int
) -> None:
    server.files["/file"] = CONTENT
    server.tricks["/file"] = list(tricks)
    assert fetch(server, tmp_path / "new" / "file") == bytes_sent
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ranges
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("part", "requests"),
    [(CONTENT[:5000], 1), (CONTENT, 1), (b"x" * 5000, 2), (CONTENT + b"more", 2)],
)
def test_what_an_earlier_command_left_is_gone_on_with_or_thrown_away(
    server: Server, tmp_path: Path, part: bytes, requests: int
) -> None:
    server.files["/file"] = CONTENT
    (tmp_path / "file.part").write_bytes(part)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked[0][1] == f"bytes={len(part)}-" and len(server.asked) == requests
    assert not (tmp_path / "file.part").exists()


def test_patience_ends_only_where_nothing_arrives(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = CONTENT
    server.tricks["/file"] = [1000, 503, 503, 503, 503, 503]
    with pytest.raises(UserError, match=r"cannot fetch the file from http.*503.*4 attempts"):
        fetch(server, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1000]
    server.tricks["/file"] = []
    assert fetch(server, tmp_path / "file") == len(CONTENT) - 1000
    with pytest.raises(UserError, match=r"cannot fetch the file"):
        download("http://127.0.0.1:1/file", tmp_path / "other", "the file", QUICK, lambda _: None)


def test_delays_grow_and_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", slept.append)
    patience = Patience(delay=1.0)
    for failures in range(1, 9):
        patience.wait(failures)
    for delay, longest in zip(slept, (1, 2, 4, 8, 16, 32, 60, 60), strict=True):
        assert longest / 2 <= delay <= longest
    assert len({delay / 2**n for n, delay in enumerate(slept[:6])}) > 1


def test_refusals_are_told_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match=r"there is no the file at http.*404"):
        fetch(server, tmp_path / "file")
    server.tricks["/file"] = [401]
    with pytest.raises(UserError, match=r"refuses the file.*401"):
        fetch(server, tmp_path / "file")
    assert len(server.asked) == 2 and list(tmp_path.iterdir()) == []
    (tmp_path / "folder").write_text("in the way")
    server.files["/file"] = CONTENT
    with pytest.raises(UserError, match="cannot write"):
        fetch(server, tmp_path / "folder" / "file")


def test_only_the_last_checkpoint_may_be_missing(server: Server, tmp_path: Path) -> None:
    source = Source(tmp_path, server.url, QUICK)
    for number in range(50):
        server.files[f"/Pong/3/replay_logs/add_count_ckpt.{number}.gz"] = b"x"
    assert source.checkpoints(get("Pong"), 3, lambda _: None) == list(range(50))
    server.files["/Pong/3/replay_logs/add_count_ckpt.50.gz"] = b"x"
    assert source.checkpoints(get("Pong"), 3, lambda _: None) == list(range(51))
    del server.files["/Pong/3/replay_logs/add_count_ckpt.7.gz"]
    (tmp_path / "Pong/3/replay_logs/add_count_ckpt.7.gz").unlink()
    with pytest.raises(UserError, match=r"add_count file of checkpoint 7 of Pong, run 3"):
        source.checkpoints(get("Pong"), 3, lambda _: None)


def test_the_command_fetches_converts_and_deletes(
    server: Server,
    replay: Replay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Patience, "wait", lambda *_: None)
    for path in replay.source.rglob("*.gz"):
        server.files[f"/{path.relative_to(replay.source)}"] = path.read_bytes()
    first = "/Breakout/1/replay_logs/$store$_observation_ckpt.{}.gz"
    server.tricks = {first.format(0): [1000, 503, 2000], first.format(2): [404]}
    more = {"download": True, "delete_converted": True, "url": server.url}
    more |= {"source": tmp_path / "source", "runs": "[1]", "checkpoints": "[0,2]"}
    assert main(replay.options(tmp_path / "root", **more)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "there is no observation file of checkpoint 2 of Breakout, run 1, at http" in line
    assert [path.name for path in tmp_path.glob("root/.parts/*/*")] == ["run1-checkpoint00.h5"]
    assert main(replay.options(tmp_path / "root", **more)) == 0
    asked = [path for path, _ in server.asked]
    assert asked.count(first.format(0)) == 4, "what was converted is not fetched again"
    assert not list((tmp_path / "source").rglob("*observation*"))
    assert len(list((tmp_path / "source").rglob("*_ckpt.*.gz"))) == 10
    options = replay.options(tmp_path / "other", runs="[1]", checkpoints="[0,2]")
    assert main(options) == 0
    with (
        EpisodeFile(tmp_path / "root" / "Breakout.h5") as fetched,
        EpisodeFile(tmp_path / "other" / "Breakout.h5") as local,
    ):
        assert (fetched.fingerprint, fetched.facts) == (local.fingerprint, local.facts)
