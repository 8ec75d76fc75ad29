"""A loopback server that speaks the hub's routes."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html>Log in first</html>"


class Hub:
  """The hub's listing and resolve routes over folders; what a test may ask of it or spoil."""

  def __init__(self, files):
    self.files = files  # repository -> {path: file}
    self.refusals = {}  # repository -> (status, X-Error-Code)
    self.cut_after = None  # bytes of a body after which the connection breaks
    self.portal = False  # a login page answers instead, as in a hotel
    self.downloads = []  # (path, first byte sent)
    self.tokens = set()

  @contextlib.contextmanager
  def serving(self):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
      yield f"http://127.0.0.1:{server.server_port}"
    finally:
      server.shutdown()
      server.server_close()

  def _handler(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def log_message(self, *_):
        pass

      def do_HEAD(self):
        self.answer(body=False)

      def do_GET(self):
        self.answer(body=True)

      def answer(self, body):
        if hub.portal:
          return self.send_page(PAGE, body)
        hub.tokens.add(self.headers.get("Authorization"))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/\w+)?", path):
          return self.list(match[1])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
          return self.resolve(match[1], match[3], body)
        return self.refuse(404, "EntryNotFound")

      def send_page(self, content, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return self.wfile.write(content) if body else None

      def refuse(self, status, code):
        self.send_response(status)
        if code:
          self.send_header("X-Error-Code", code)
          self.send_header("X-Error-Message", "refused")
        self.send_header("Content-Length", "0")
        self.end_headers()

      def list(self, repository):
        status, code = hub.refusals.get(repository, (200, None))
        if repository not in hub.files:
          return self.refuse(401, "RepoNotFound")
        if status != 200 and code != "GatedRepo":  # a gated repository's listing is public
          return self.refuse(status, code)
        siblings = [{"rfilename": name} for name in hub.files[repository]]
        content = json.dumps({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

      def resolve(self, repository, name, body):
        if repository in hub.refusals:
          return self.refuse(*hub.refusals[repository])
        if name not in hub.files[repository]:
          return self.refuse(404, "EntryNotFound")
        content = hub.files[repository][name].read_bytes()
        first = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if first:
          self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if not body:
          return None
        hub.downloads.append((name, first))
        sent = content[first:]
        if hub.cut_after is not None and len(sent) > hub.cut_after:
          self.wfile.write(sent[: hub.cut_after])
          self.wfile.flush()
          self.connection.shutdown(2)
          self.close_connection = True
          return None
        return self.wfile.write(sent)

    return Handler
