"""A fake of Google Cloud Storage's JSON API, on this machine, in memory.

It answers what tensorstore, gcsfs and array_record's client ask: objects read
whole or in ranges, listed by prefix, written in one piece or resumably, with
generation preconditions, moved, copied and deleted.

  with fake_gcs.serve() as server:
    subprocess.run(..., env=os.environ | server.environment)
"""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import email.parser
import email.policy
import http.server
import itertools
import json
import re
import sys
import threading
import traceback
from urllib import parse

import google_crc32c

_TIME = "2026-01-01T00:00:00.000Z"


@dataclasses.dataclass
class Store:
  """What the buckets hold, and what was asked.

  Attributes:
    objects: (bucket, name) -> (generation, bytes).
    uploads: resumable uploads that have not ended.
    requests: (method, path) in their order.
    broken: answers 503 to requests whose (method, path) it is true of.
    refused: answers 403, likewise.
  """

  objects: dict = dataclasses.field(default_factory=dict)
  uploads: dict = dataclasses.field(default_factory=dict)
  requests: list = dataclasses.field(default_factory=list)
  broken: object = staticmethod(lambda method, path: False)
  refused: object = staticmethod(lambda method, path: False)
  lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
  numbers: itertools.count = dataclasses.field(
    default_factory=lambda: itertools.count(1000)
  )

  def names(self, bucket: str) -> list[str]:
    """Names of a bucket's objects."""
    with self.lock:
      return sorted(name for b, name in self.objects if b == bucket)


@dataclasses.dataclass(frozen=True)
class Server:
  """A server that runs.

  Attributes:
    store: what it holds.
    url: where it is.
    environment: variables that send the three clients here.
  """

  store: Store
  url: str

  @property
  def environment(self) -> dict[str, str]:
    return {
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore's
      "STORAGE_EMULATOR_HOST": self.url,  # gcsfs's
      "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # array_record's
      # A probe of the bucket by gRPC, which a fake has not.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


@contextlib.contextmanager
def serve() -> Iterator[Server]:
  """Serves an empty store on a free port of this machine."""
  store = Store()
  handler = type("Handler", (_Handler,), {"store": store})
  httpd = _HttpServer(("127.0.0.1", 0), handler)
  thread = threading.Thread(target=httpd.serve_forever, daemon=True)
  thread.start()
  try:
    yield Server(store, f"http://127.0.0.1:{httpd.server_port}")
  finally:
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def _crc32c(data):
  """The checksum as the API writes it: base64 of the big-endian word."""
  return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


class _HttpServer(http.server.ThreadingHTTPServer):
  def handle_error(self, request, client_address):
    """Clients that go away are no error."""
    del request, client_address
    if not isinstance(sys.exception(), ConnectionError):
      traceback.print_exc()


class _ApiError(Exception):
  def __init__(self, status, message):
    super().__init__(message)
    self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  store: Store

  def log_message(self, *_):
    pass

  def do_GET(self):
    self._answer()

  do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

  def _answer(self):
    url = parse.urlsplit(self.path)
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    query = dict(parse.parse_qsl(url.query, keep_blank_values=True))
    store = self.store
    try:
      with store.lock:
        store.requests.append((self.command, self.path))
        request = self.command, parse.unquote(self.path)
        if store.broken(*request):
          raise _ApiError(503, "the service is unavailable")
        if store.refused(*request):
          raise _ApiError(403, "forbidden: no permission to do that")
        status, data, headers = self._route(url.path, query, body)
    except _ApiError as error:
      status, headers = error.status, {}
      data = {"error": {"code": status, "message": str(error)}}
    if status in (204, 304):  # a body would be read as the next answer
      data = b""
    elif not isinstance(data, bytes):
      data = json.dumps(data).encode()
      headers = {"Content-Type": "application/json"} | headers
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def _route(self, path, query, body):
    # Both with and without the name of the API in front of the version.
    path = re.sub(r"^(/resumable)?/upload/storage/v1", "/upload", path)
    path = re.sub(r"^(/download)?/storage/v1", "", path)
    routes = (
      ("GET", r"/b/([^/]+)/?", self._bucket),
      ("GET", r"/b/([^/]+)/o/?", self._list),
      ("GET", r"/b/([^/]+)/o/([^/]+)", self._get),
      ("GET", r"/([^/]+)/(.+)", self._get_xml),
      ("DELETE", r"/b/([^/]+)/o/([^/]+)", self._delete),
      ("POST", r"/upload/b/([^/]+)/o/?", self._upload),
      ("PUT", r"/upload/b/([^/]+)/o/?", self._resume),
      (
        "POST",
        r"/b/([^/]+)/o/([^/]+)/(?:copy|rewrite)To"
        r"/b/([^/]+)/o/([^/]+)",
        self._copy,
      ),
      ("POST", r"/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)", self._move),
    )
    for method, pattern, function in routes:
      match = re.fullmatch(pattern, path)
      if match and method == self.command:
        names = map(parse.unquote, match.groups())
        return function(*names, query=query, body=body)
    raise _ApiError(404, f"the fake does not know {self.command} {path}")

  def _describe(self, bucket, name):
    generation, data = self._find(bucket, name)
    return {
      "kind": "storage#object",
      "id": f"{bucket}/{name}/{generation}",
      "bucket": bucket,
      "name": name,
      "generation": str(generation),
      "metageneration": "1",
      "size": str(len(data)),
      "crc32c": _crc32c(data),
      "contentType": "application/octet-stream",
      "storageClass": "STANDARD",
      "timeCreated": _TIME,
      "updated": _TIME,
    }

  def _find(self, bucket, name):
    if (bucket, name) not in self.store.objects:
      raise _ApiError(404, f"No such object: {bucket}/{name}")
    return self.store.objects[bucket, name]

  def _check(self, bucket, name, query):
    """Refuses where a precondition on the generation does not hold."""
    current = self.store.objects.get((bucket, name), (0, b""))[0]
    wanted = query.get("ifGenerationMatch")
    if wanted is not None and int(wanted) != current:
      raise _ApiError(412, f"generation is {current}, not {wanted}")
    unwanted = query.get("ifGenerationNotMatch")
    if unwanted is not None and int(unwanted) == current:
      raise _ApiError(304, "not modified")

  def _put(self, bucket, name, data, query):
    self._check(bucket, name, query)
    self.store.objects[bucket, name] = next(self.store.numbers), data
    return 200, self._describe(bucket, name), {}

  def _bucket(self, bucket, *, query, body):
    del query, body
    return 200, {"kind": "storage#bucket", "name": bucket, "id": bucket}, {}

  def _list(self, bucket, *, query, body):
    del body
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    items, prefixes = [], set()
    for name in self.store.names(bucket):
      if not name.startswith(prefix) or name < query.get("startOffset", ""):
        continue
      if "endOffset" in query and name >= query["endOffset"]:
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(self._describe(bucket, name))
    start = int(query.get("pageToken") or 0)
    stop = start + int(query.get("maxResults") or 1000)
    answer = {"kind": "storage#objects", "items": items[start:stop]}
    answer["prefixes"] = sorted(prefixes) if start == 0 else []
    if stop < len(items):
      answer["nextPageToken"] = str(stop)
    return 200, answer, {}

  def _get_xml(self, bucket, name, *, query, body):
    return self._get(bucket, name, query={"alt": "media"} | query, body=body)

  def _get(self, bucket, name, *, query, body):
    del body
    if query.get("alt") != "media":
      self._check(bucket, name, query)
      return 200, self._describe(bucket, name), {}
    generation, data = self._find(bucket, name)
    self._check(bucket, name, query)
    headers = {
      "Content-Type": "application/octet-stream",
      "x-goog-generation": str(generation),
      "x-goog-hash": f"crc32c={_crc32c(data)}",
      "x-goog-stored-content-length": str(len(data)),
      "ETag": str(generation),
    }
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
    if not wanted:
      return 200, data, headers
    first, last = wanted.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
      raise _ApiError(416, "the range lies behind the object's end")
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return 206, data[start:stop], headers

  def _delete(self, bucket, name, *, query, body):
    del body
    self._find(bucket, name)
    self._check(bucket, name, query)
    del self.store.objects[bucket, name]
    return 204, b"", {}

  def _upload(self, bucket, *, query, body):
    if "upload_id" in query:
      return self._resume(bucket, query=query, body=body)
    kind = query.get("uploadType")
    if kind == "media":
      return self._put(bucket, query["name"], body, query)
    if kind == "multipart":
      head = b"Content-Type: " + self.headers["Content-Type"].encode()
      message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        head + b"\r\n\r\n" + body
      )
      about, content = message.iter_parts()
      name = query.get("name") or json.loads(about.get_content())["name"]
      # The parser mends line ends; the bytes themselves must come as sent.
      mark = b"--" + message.get_boundary().encode()
      part = body.split(mark, 2)[2]
      end = b"\r\n" if part.startswith(b"\r\n") else b"\n"  # gcsfs's
      part = part.split(2 * end, 1)[1]
      del content
      return self._put(
        bucket, name, part[: part.rindex(mark) - len(end)], query
      )
    number = str(next(self.store.numbers))
    name = query.get("name") or json.loads(body)["name"]
    self.store.uploads[number] = [bucket, name, b"", query]
    where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o"
    return 200, {}, {"Location": f"{where}?upload_id={number}"}

  def _resume(self, bucket, *, query, body):
    del bucket
    upload = self.store.uploads[query["upload_id"]]
    upload[2] += body
    bucket, name, data, first_query = upload
    whole = re.fullmatch(
      r"bytes .*/(\d+|\*)", self.headers.get("Content-Range") or "bytes x/*"
    )[1]
    if self.headers.get("Content-Range") and (
      whole == "*" or int(whole) > len(data)
    ):
      return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
    del self.store.uploads[query["upload_id"]]
    return self._put(bucket, name, data, first_query)

  def _copy(self, bucket, name, to_bucket, to_name, *, query, body):
    del body
    data = self._find(bucket, name)[1]
    _, resource, _ = self._put(to_bucket, to_name, data, query)
    if "/rewriteTo/" not in self.path:
      return 200, resource, {}
    size = str(len(data))
    answer = {"kind": "storage#rewriteResponse", "done": True}
    answer |= {"totalBytesRewritten": size, "objectSize": size}
    return 200, answer | {"resource": resource}, {}

  def _move(self, bucket, name, to_name, *, query, body):
    answer = self._copy(bucket, name, bucket, to_name, query=query, body=body)
    del self.store.objects[bucket, name]
    return answer
