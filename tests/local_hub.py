"""A Hugging Face Hub on this machine: what huggingface_hub asks of the real one, over HTTP."""

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextlib.contextmanager
def local_hub(repositories, gated=(), breaking=None):
    """The environment variable's value for HF_ENDPOINT. `repositories` are {"models/owner/name" or
    "datasets/owner/name": (commit, {path: bytes})}; those in `gated` refuse whoever has no token, and the
    connection breaks off within the file `breaking`."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(urlsplit(self.path).path).strip("/")
            api = path.startswith("api/")
            parts = path.removeprefix("api/").split("/")
            parts = parts if parts[0] in ("models", "datasets") else ["models", *parts]
            if len(parts) < 3:  # of no repository
                return self.refuse(404, "EntryNotFound")
            parts += ["revision", "main"][max(0, len(parts) - 3) :]
            name, what, revision, file = "/".join(parts[:3]), parts[3], parts[4], "/".join(parts[5:])
            if name not in repositories:
                return self.refuse(404, "RepoNotFound")
            if name in gated and "authorization" not in self.headers:
                return self.refuse(401, "GatedRepo")
            commit, files = repositories[name]
            if revision not in (commit, "main"):
                return self.refuse(404, "RevisionNotFound")
            if api and what == "tree":
                return self.answer(json.dumps([entry(path, data) for path, data in files.items()]).encode())
            if api:
                found = {"id": "/".join(parts[1:3]), "sha": commit, "siblings": [{"rfilename": path} for path in files]}
                return self.answer(json.dumps(found).encode())
            if file not in files:
                return self.refuse(404, "EntryNotFound")
            digest = hashlib.sha256(repositories[name][1][file]).hexdigest()
            self.answer(files[file], {"X-Repo-Commit": commit, "ETag": f'"{digest}"'})

        do_HEAD = do_GET

        def do_POST(self):
            """A repository that is made, and files that are put into it by whoever has a token."""
            path, sent = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "authorization" not in self.headers:
                return self.refuse(401, "Unauthorized")
            if path == "/api/validate-yaml":
                return self.answer(b'{"errors": [], "warnings": []}')
            if path == "/api/repos/create":
                asked = json.loads(sent)
                name = f"{asked['organization']}/{asked['name']}"
                repositories.setdefault(f"models/{name}", ("0" * 40, {}))
                return self.answer(json.dumps({"url": f"http://{self.headers['Host']}/{name}", "name": name}).encode())
            name = "/".join(path.split("/")[2:5])
            if "/preupload/" in path:
                modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(sent)["files"]]
                return self.answer(json.dumps({"files": modes}).encode())
            files = dict(repositories[name][1])
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            commit = hashlib.sha1(sent).hexdigest()
            repositories[name] = commit, files
            self.answer(json.dumps({"commitUrl": f"http://{self.headers['Host']}/{name}", "commitOid": commit}).encode())

        def answer(self, data, headers=()):
            self.send_response(200)
            for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **dict(headers)}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                breaks = breaking and self.path.endswith(breaking)
                self.wfile.write(data[: len(data) // 2] if breaks else data)
                self.close_connection = bool(breaks)

        def refuse(self, status, code):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def entry(path, data):
    digest = hashlib.sha256(data).hexdigest()
    return {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": digest[:40],
        "lfs": {"oid": digest, "size": len(data), "pointerSize": 100},
    }


def run_with_hub(endpoint, home, command, **environment):
    """What a Python process does that takes this for the Hub (None: HF_HUB_OFFLINE); `home` holds its cache."""
    place = {"HF_HUB_OFFLINE": "1"} if endpoint is None else {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint}
    settings = {"HF_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1]), **place, **environment}
    command = [sys.executable, "-c", f"import time; time.sleep = lambda seconds: None  # between attempts\n{command}"]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
