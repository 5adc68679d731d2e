"""A little server that speaks the part of Weights & Biases' protocol which `wandb sync` uses."""

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "UDox", "name": "scratchgpt", "entity": {"id": "RTox", "name": "me"}}


class Service(ThreadingHTTPServer):
    """Keeps what is uploaded.

    Attributes:
      runs: the last description of each run (configuration, summary) by its id.
      streams: the lines of each streamed file of a run, such as wandb-history.jsonl, by its name.
      artifacts: (name, type, commits) of each artifact by its id.
      files: content of the uploaded files by path.
      unknown: the operations which were asked for and which the stand-in does not have.
      refuses: answer every request with an error.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.streams: dict[str, dict[int, str]] = {}
        self.artifacts: dict[str, list[Any]] = {}
        self.files: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.refuses = False
        self.lock = threading.Lock()

    def lines(self, name: str) -> list[Any]:
        """The rows of a streamed file, in order."""
        return [json.loads(line) for _, line in sorted(self.streams.get(name, {}).items())]

    def bucket(self, name: str) -> dict[str, Any]:
        """What the service knows of a run, in its own words."""
        known = self.runs[name]
        tail = {
            f: json.dumps([json.dumps(r) for r in self.lines(f"wandb-{f}.jsonl")[-1:]]) for f in ("history", "events")
        }
        counts = {f"{f}LineCount": len(self.lines(f"wandb-{f}.jsonl")) for f in ("history", "events")}
        return {
            "id": "UjE=",
            "name": name,
            "displayName": known.get("displayName"),
            "description": None,
            "config": known.get("config") or "{}",
            "summaryMetrics": known.get("summaryMetrics") or "{}",
            "sweepName": None,
            "project": PROJECT,
            "logLineCount": 0,
            "historyTail": tail["history"],
            "eventsTail": tail["events"],
            "wandbConfig": '{"t": 1}',
            "tags": [],
            "notes": None,
            **counts,
        }

    def operation(self, name: str, given: dict[str, Any]) -> Any:
        """The data of a GraphQL operation, or None where there is none of this name."""
        match name:
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                return {
                    "model": {**PROJECT, "bucket": self.bucket(given["name"]) if given["name"] in self.runs else None}
                }
            case "UpsertBucket":
                inserted = given["name"] not in self.runs
                self.runs.setdefault(given["name"], {}).update({k: v for k, v in given.items() if v is not None})
                return {"upsertBucket": {"bucket": self.bucket(given["name"]), "inserted": inserted}}
            case "CreateArtifact":
                asked, key = given["input"], f"artifact{len(self.artifacts)}"
                self.artifacts[key] = [asked["artifactCollectionName"], asked["artifactTypeName"], 0]
                return {"createArtifact": {"artifact": {"id": key, "state": "PENDING", "artifactSequence": {}}}}
            case "CreateArtifactManifest":
                place = {
                    "id": "F",
                    "uploadUrl": f"{self.url}/upload/{given['artifactID']}/manifest",
                    "uploadHeaders": [],
                }
                return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": place}}}
            case "CreateArtifactFiles":
                edges = [
                    {
                        "node": {
                            "storagePath": f["name"],
                            "uploadUrl": f"{self.url}/upload/{f['artifactID']}/{f['name']}",
                            "uploadHeaders": [],
                            "uploadMultipartUrls": None,
                            "artifact": {"id": f["artifactID"]},
                        }
                    }
                    for f in given["input"]["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                self.artifacts[given["artifactID"]][2] += 1
                return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
            case "CreateRunFiles":
                files = [{"name": f, "uploadUrl": f"{self.url}/upload/run/{f}"} for f in given["files"]]
                return {"createRunFiles": {"runID": "UjE=", "uploadHeaders": [], "files": files}}
        return None


@contextlib.contextmanager
def running() -> Iterator[Service]:
    """A service that answers within the block."""
    with Service() as service:
        threading.Thread(target=service.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield service
        finally:
            service.shutdown()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Service

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def handle_request(self) -> None:
        """Read a request, keep what it brings and answer it."""
        service, path = self.server, self.path.split("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        value: dict[str, Any] = {}
        with service.lock:
            if service.refuses:
                value = {"data": None, "errors": [{"message": "refused, as the test has it"}]}
            elif path == "/graphql":
                asked = json.loads(body)
                data = service.operation(asked["operationName"], asked.get("variables") or {})
                if data is None:
                    service.unknown.append(asked["operationName"])
                value = {"data": data} if data else {"data": None, "errors": [{"message": "not in the stand-in"}]}
            elif path.endswith("/file_stream"):
                for name, part in (json.loads(body).get("files") or {}).items():
                    rows = service.streams.setdefault(name, {})
                    rows.update(enumerate(part["content"], start=part["offset"]))
            elif path.startswith("/upload/"):
                service.files[path.removeprefix("/upload/")] = body
        answer = json.dumps(value).encode()
        self.send_response(400 if service.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = handle_request  # the names that http.server calls
