"""A little server that speaks the part of the Hugging Face Hub's protocol which an upload of a model uses."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_standin"


class Hub(ThreadingHTTPServer):
    """Keeps what is uploaded.

    Attributes:
      files: content of the committed files by path.
      requests: "METHOD path" of each request, in order.
      private: visibility of the repository, or None while there is none.
      lfs: whether .safetensors files are asked for by Git LFS, as the hub does, rather than inside the commit.
      answers: status by path prefix, for requests to refuse.
      silent: never answer; the requests end when the hub is closed.
    """

    daemon_threads = True

    def __init__(self, **settings: Any):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.private: bool | None = None
        self.lfs, self.silent, self.answers = False, False, {}
        self.closing = threading.Event()
        self.__dict__.update(settings)


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Hub]:
    """A hub that serves within the block."""
    with Hub(**settings) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.closing.set()
            hub.shutdown()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def answer(self, value: Any, status: int = 200) -> None:
        """Send ``value`` as JSON."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self) -> None:
        """Read a request, and answer it from the state of the hub."""
        hub, path = self.server, self.path.split("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/agent-harnesses":  # statistics of the library
            return self.answer({}, 404)
        hub.requests.append(f"{self.command} {path}")
        if hub.silent:
            hub.closing.wait()
            return None
        for prefix, status in hub.answers.items():
            if path.startswith(prefix):
                return self.answer({"error": "as the test has it"}, status)
        if path.startswith("/blobs/"):  # a signed address, which takes no login
            hub.blobs[path.removeprefix("/blobs/")] = body
            return self.answer({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        return self.answer(*self.routed(path, body))

    do_GET = do_POST = do_PUT = handle_request  # the names that http.server calls

    def routed(self, path: str, body: bytes) -> tuple[Any, int]:
        """(answer, status) of an authorised request."""
        hub = self.server
        match path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                url = f"{hub.url}/{asked['organization']}/{asked['name']}"
                if hub.private is not None:
                    return {"url": url, "error": "You already created this model repo"}, 409
                hub.private = asked.get("visibility") == "private" or asked.get("private", False)
                return {"url": url}, 200
            case ["api", "validate-yaml"]:
                front = json.loads(body)["content"].split("---\n")[1]
                return {"errors": [], "warnings": []}, 200 if isinstance(yaml.safe_load(front), dict) else 400
            case ["api", "models", owner, name]:
                if hub.private is None:
                    return {"error": "Repository not found"}, 404
                return {"id": f"{owner}/{name}", "private": hub.private, "sha": "0" * 40}, 200
            case ["api", "models", _, _, "preupload", "main"]:
                asked = json.loads(body)["files"]
                modes = ["lfs" if hub.lfs and f["path"].endswith(".safetensors") else "regular" for f in asked]
                rows = zip(asked, modes, strict=True)
                return {"files": [{"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in rows]}, 200
            case [_, _, "info", "lfs", "objects", "batch"]:
                objects = json.loads(body)["objects"]
                upload = [{**o, "actions": {"upload": {"href": f"{hub.url}/blobs/{o['oid']}"}}} for o in objects]
                return {"transfer": "basic", "objects": upload}, 200
            case ["api", "models", owner, name, "commit", "main"]:
                for line in map(json.loads, body.splitlines()):
                    self.commit(line["key"], line["value"])
                return {"commitUrl": f"{hub.url}/{owner}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}, 200
        return {"error": f"the stand-in has no {self.command} {path}"}, 404

    def commit(self, key: str, value: dict[str, Any]) -> None:
        """Apply one line of a commit."""
        if key == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            blob = self.server.blobs[value["oid"]]
            assert hashlib.sha256(blob).hexdigest() == value["oid"]
            self.server.files[value["path"]] = blob
