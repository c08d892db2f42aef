"""The few endpoints of a model hub that dataset repositories need: create, commit (git and LFS), list, fetch."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "0" * 40


class Hub:
    """Repositories in memory, and a count of what was asked; `fail_commit` makes one commit fail."""

    def __init__(self):
        self.repositories, self.private, self.objects = {}, {}, {}
        self.commits = []
        self.fail_commit = None
        self.endpoint = ""

    def entry(self, path, content):
        """A file as the hub lists it; tars lie beside git."""
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if path.endswith(".tar"):
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found

    def listing(self, files, folder, recursive):
        inside = {path: content for path, content in files.items() if path.startswith(folder)}
        folders = {folder + path[len(folder) :].split("/")[0] for path in inside if "/" in path[len(folder) :]}
        shown = {path: content for path, content in inside.items() if recursive or "/" not in path[len(folder) :]}
        named = [{"type": "directory", "path": path, "size": 0, "oid": SHA} for path in sorted(folders)]
        return named + [self.entry(*file) for file in sorted(shown.items())]

    def commit(self, name, lines):
        if len(self.commits) == self.fail_commit:
            self.fail_commit = None
            return 400, {"error": "out of order"}
        changed = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.objects[value["oid"]]
            changed += [value["path"]] if line["key"] != "header" else []
        self.commits.append(changed)
        return 200, {"commitUrl": f"{self.endpoint}/datasets/{name}/commit/{SHA}", "commitOid": SHA}

    def api(self, name, verb, body, recursive):
        """The answer to /api/datasets/<name>/<verb>."""
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        files = self.repositories[name]
        if verb.startswith("preupload"):
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".tar") else "regular",
                      "shouldIgnore": False} for f in json.loads(body)["files"]]  # fmt: skip
            return 200, {"files": modes}
        if verb.startswith("commit/"):
            return self.commit(name, [json.loads(line) for line in body.splitlines()])
        if verb.startswith("paths-info"):
            paths = json.loads(body)["paths"] if body.startswith(b"{") else []
            return 200, [self.entry(path, files[path]) for path in paths if path in files]
        if verb.startswith("tree"):
            folder = "/".join([*verb.split("/")[2:], ""])
            listed = self.listing(files, folder, recursive)
            return (200, listed) if listed or not folder else (404, {"error": "Entry not found"})
        return 200, {"id": name, "sha": SHA, "private": self.private[name], "siblings": []}


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def reply(self, status, content, headers=()):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
                self.send_header(name, value)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound" if "Entry" in str(content) else "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer(self):
            url = urlsplit(self.path)
            path, body = unquote(url.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path == "/api/validate-yaml":
                return self.reply(200, {"errors": [], "warnings": []})
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if name in hub.repositories:
                    return self.reply(409, {"url": f"{hub.endpoint}/datasets/{name}"})
                hub.repositories[name] = {}
                hub.private[name] = asked.get("private", asked.get("visibility") == "private")
                return self.reply(200, {"url": f"{hub.endpoint}/datasets/{name}"})
            if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/?(.*)", path):
                return self.reply(
                    *hub.api(found[1], found[2], body, "recursive=True" in url.query or "recursive=true" in url.query)
                )
            if path.endswith("/info/lfs/objects/batch"):
                root = f"{hub.endpoint}/lfs/"
                objects = [{**o, "actions": {"upload": {"href": root + o["oid"]}}} for o in json.loads(body)["objects"]]
                return self.reply(200, {"transfer": "basic", "objects": objects})
            if path.startswith("/lfs/"):
                hub.objects[path[5:]] = body
                return self.reply(200, {})
            return self.resolve(path)

        def resolve(self, path):
            found = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.*)", path)
            files = hub.repositories.get(found[1], {}) if found else {}
            if not found or found[2] not in files:
                return self.reply(404, {"error": "Entry not found"})
            content, headers = files[found[2]], {"ETag": f'"{SHA}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                begin, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
                return self.reply(206, content[begin : end + 1], headers)
            return self.reply(200, content, headers)

        do_GET = do_HEAD = do_POST = do_PUT = answer

    return Handler


@contextmanager
def serving():
    """Run a hub on this machine; its state and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield hub, hub.endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
