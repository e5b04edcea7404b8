"""A Hub of our own on localhost: what a download asks for, and the faults a test can switch on.

Run as a program it serves the repositories below a folder, laid out as `owner/name/commit/files`, and prints its
address. `main` is the last commit by name; `tags.json` in a repository's folder maps other revisions to commits.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """The server; `faults` maps a repository to `gated`, `down`, or `cut`, and `requests` records what was asked."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.faults: dict[str, str] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, revision: str) -> str | None:
        """The commit a revision names."""
        commits = sorted(path.name for path in (self.root / repo).iterdir() if path.is_dir())
        tags = self.root / repo / "tags.json"
        names = {"main": commits[-1], **{commit: commit for commit in commits}}
        return (names | (json.loads(tags.read_text()) if tags.exists() else {})).get(revision)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def _error(self, status: int, code: str, **headers: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **headers})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repo = "/".join(parts[:2])
        fault = self.server.faults.get(repo)
        if len(parts) < 2 or not (self.server.root / repo).is_dir():
            self._error(404, "RepoNotFound")
        elif fault == "down":
            self._answer(503)
        elif fault == "gated":
            self._error(403, "GatedRepo")
        elif api:
            self._api(repo, parts[2:])
        else:
            self._file(repo, parts[3], "/".join(parts[4:]), cut=fault == "cut")

    def _api(self, repo: str, rest: list[str]) -> None:
        commit = self.server.commit(repo, rest[1] if len(rest) > 1 else "main")
        if commit is None:
            self._error(404, "RevisionNotFound")
            return
        files = sorted(path for path in (self.server.root / repo / commit).iterdir())
        if rest[:1] == ["tree"]:
            listing = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _oid(path)} for path in files
            ]
            body: object = listing
        else:
            siblings = [{"rfilename": path.name} for path in files]
            body = {"id": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str, cut: bool) -> None:
        commit = self.server.commit(repo, revision)
        path = self.server.root / repo / str(commit) / name
        if commit is None:
            self._error(404, "RevisionNotFound")
        elif not path.is_file():
            self._error(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        else:
            self._answer(200, path.read_bytes(), {"X-Repo-Commit": commit, "ETag": f'"{_oid(path)}"'}, cut=cut)


def _oid(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve the repositories below `root` in a thread."""
    with Hub(root) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


if __name__ == "__main__":
    with Hub(Path(sys.argv[1])) as hub:
        print(hub.url, flush=True)
        hub.serve_forever()
