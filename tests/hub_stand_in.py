"""A stand-in for the Hugging Face Hub on 127.0.0.1: one model, with what the hub's own client asks of the real one."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = "tests/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """What it serves, and what it was asked."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {
            p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name[0] != "."
        }
        self.token: str | None = None  # asked for, if any
        self.break_once: dict[str, int] = {}  # file: bytes after which its first download breaks off
        self.damaged: set[str] = set()  # files served with other content, as long
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.tokens: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self, name: str) -> list[str | None]:
        """The ranges that were asked of a file's content, None for all of it."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(f"/{name}")]

    def etag(self, name: str) -> str:
        """As the hub's: SHA-256 of large files (weights), Git's name of others."""
        content = self.files[name]
        if name.endswith(".safetensors"):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def blob(self, name: str) -> dict[str, object]:
        """What the hub's API tells of a file's content."""
        size, etag = len(self.files[name]), self.etag(name)
        if len(etag) == 64:
            return {
                "size": size,
                "blobId": "0" * 40,
                "lfs": {"sha256": etag, "size": size, "pointerSize": 130},
            }
        return {"size": size, "blobId": etag}


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((method, path, self.headers.get("Range")))
        if given := self.headers.get("Authorization"):
            self.server.tokens.add(given)
        if self.server.token and given != f"Bearer {self.server.token}":
            self.tell(
                401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}
            )
            return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) == REPOSITORY:
            self.about(parts[4:])
        elif "/".join(parts[:2]) == REPOSITORY and parts[2] == "resolve" and parts[-1] in self.server.files:
            self.content(method, parts[-1])
        else:
            self.tell(404, {"X-Error-Code": "RepoNotFound"})

    def about(self, rest: list[str]) -> None:
        if rest[:1] == ["tree"]:
            found: object = [
                {"type": "file", "path": name, "size": len(content), "oid": self.server.etag(name)}
                for name, content in self.server.files.items()
            ]
        elif rest[:1] == ["revision"] and rest[1] not in (COMMIT, "main"):
            self.tell(404, {"X-Error-Code": "RevisionNotFound"})
            return
        else:
            siblings = [{"rfilename": name, **self.server.blob(name)} for name in self.server.files]
            found = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}
        self.tell(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def content(self, method: str, name: str) -> None:
        content, server = self.server.files[name], self.server
        head = {"X-Repo-Commit": COMMIT, "ETag": f'"{server.etag(name)}"', "Accept-Ranges": "bytes"}
        if name.endswith(".safetensors"):
            head |= {"X-Linked-Etag": f'"{server.etag(name)}"', "X-Linked-Size": str(len(content))}
        if name in server.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if method == "HEAD":
            self.tell(200, head | {"Content-Length": str(len(content))}, None)
            return
        status, start = 200, 0
        if span := self.headers.get("Range"):
            status, start = 206, int(span.removeprefix("bytes=").partition("-")[0])
            head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop = server.break_once.pop(name, None)
        self.tell(status, head, content[start:], stop)

    def tell(
        self, status: int, head: dict[str, str], body: bytes | None = b"", stop: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in head.items():
            self.send_header(key, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(body[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """The model in ``folder``, served while the block runs."""
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
