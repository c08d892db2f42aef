"""What is fetched, and from where: public hosts and allowed folders, checked at every hop, within bounds."""

import asyncio
import contextlib
import datetime
import gzip
import os
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from urllib.parse import unquote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve.api.errors import ApiError
from serve.api.media import fetching
from serve.api.media.addresses import is_public
from serve.api.media.fetching import Fetcher
from serve.api.media.files import Spool
from serve.api.media.folders import open_allowed
from serve.api.media.types import ACCEPTED
from serve.api.settings import ApiSettings

DATA = b"\x89PNG" + bytes(200)


class Files(BaseHTTPRequestHandler):
    """A server of files, good and bad, that counts what it is asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        path, _, words = self.path.partition("?")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, "at_" + path.strip("/").replace(".", "_").replace("-", "_"))(unquote(words))

    def say(self, status=200, data=DATA, **headers):
        self.send_response(status)
        for name, value in {"Content_Type": "image/png", "Content_Length": str(len(data)), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def at_a_png(self, _):
        self.say()

    def at_untyped_jpg(self, _):
        self.say(Content_Type="application/octet-stream")

    def at_untyped_exe(self, _):
        self.say(Content_Type="application/octet-stream")

    def at_page(self, _):
        self.say(Content_Type="text/html")

    def at_redirect_to(self, url):
        self.say(302, b"", Location=url)

    def at_missing(self, _):
        self.say(404)

    def at_large(self, _):
        self.say(Content_Length=str(1 << 40))

    def at_endless(self, _):
        self.say(Content_Length=None, Transfer_Encoding="chunked", data=b"")
        while True:
            self.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")

    def at_zipped(self, _):
        self.say(data=gzip.compress(bytes(1 << 20)), Content_Encoding="gzip")

    def at_slow(self, _):
        self.say(data=b"", Content_Length="100")
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def at_short(self, _):
        self.say(data=b"x", Content_Length="100")
        self.close_connection = True

    def at_empty(self, _):
        self.say(data=b"")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def listening(context=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    server.asked = []
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def files():
    with listening() as server:
        yield server


@pytest.fixture
def fetch(tmp_path):
    """Fetches a URL into a folder, which is empty afterwards but for what was fetched."""
    spool = tmp_path / "spool"
    spool.mkdir()

    def fetched(url, kind="image_url", **words):
        settings = ApiSettings(
            checkpoint="x", **{"fetch_schemes": ["http", "https"], "media_bytes": 10_000, "fetch_seconds": 5, **words}
        )

        async def run():
            fetcher = Fetcher(settings, Spool(str(spool), settings.media_bytes))
            try:
                return await fetcher.fetch(url, ACCEPTED[kind], "url")
            finally:
                await fetcher.close()

        try:
            sent = asyncio.run(run())
        except ApiError as error:
            assert not list(spool.iterdir())
            return error
        data = sent.path.read_bytes()
        sent.remove()
        return sent.path.suffix, data

    return fetched


def allowed(server):
    return {"fetch_hosts": [f"127.0.0.1:{server.server_port}"]}


def at(server, path, scheme="http", host="127.0.0.1"):
    return f"{scheme}://{host}:{server.server_port}/{path}"


def test_a_host_that_is_no_public_one_is_asked_only_if_the_settings_name_it(files, fetch):
    assert fetch(at(files, "a.png"), **allowed(files)) == (".png", DATA)
    assert files.asked == [("/a.png", f"127.0.0.1:{files.server_port}")]
    for words in ({}, {"fetch_hosts": [f"127.0.0.1:{files.server_port + 1}"]}):
        assert fetch(at(files, "a.png"), **words).code == "url_not_allowed"
    for host in ("localhost", "127.1", "0x7f000001", "0177.0.0.1", "2130706433", "0", "[::1]", "[::ffff:127.0.0.1]"):
        assert fetch(at(files, "a.png", host=host), **allowed(files)).code == "url_not_allowed", host
    assert fetch(at(files, "a.png"), fetch_schemes=["https"], **allowed(files)).code == "url_not_allowed"
    assert fetch(at(files, "a.png", host="user:pass@127.0.0.1"), **allowed(files)).code == "url_not_allowed"
    assert len(files.asked) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("page", "wrong_type"),
        ("untyped.exe", "wrong_type"),
        ("missing", "fetch_failed"),
        ("large", "too_large"),
        ("endless", "too_large"),
        ("zipped", "fetch_failed"),
        ("slow", "fetch_failed"),
        ("short", "fetch_failed"),
        ("empty", "empty"),
        ("redirect-to?file:///etc/passwd", "url_not_allowed"),
        ("redirect-to?https:///", "url_not_allowed"),
        ("redirect-to?http://[", "url_not_allowed"),
        ("redirect-to?/redirect-to?/redirect-to?/redirect-to?/a.png", "fetch_failed"),
    ],
)
def test_what_is_fetched_keeps_its_bounds(files, fetch, path, code):
    started = time.perf_counter()
    assert fetch(at(files, path), fetch_seconds=2, **allowed(files)).code == code
    assert time.perf_counter() - started < 5


def test_each_redirect_is_checked(files, fetch):
    """An allowed host must not lead to one that is not."""
    with listening() as canary:
        moved = fetch(at(files, f"redirect-to?{at(canary, 'a.png')}"), **allowed(files))
        assert moved.code == "url_not_allowed"
        assert not canary.asked
        both = {"fetch_hosts": [f"127.0.0.1:{server.server_port}" for server in (files, canary)]}
        assert fetch(at(files, f"redirect-to?{at(canary, 'untyped.jpg')}"), **both) == (".jpg", DATA)
    assert fetch(at(files, "redirect-to?/a.png"), **allowed(files)) == (".png", DATA)


def test_one_private_address_of_a_name_is_enough_to_refuse_it(files, fetch, monkeypatch):
    """And a name is resolved once: what was checked is what is dialled."""
    asked = []
    answers = [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"]]
    monkeypatch.setattr(fetching, "_resolve", lambda host, port: (asked.append(host), answers[len(asked) - 1])[1])
    assert fetch(at(files, "a.png", host="media.test")).code == "url_not_allowed"
    named = {"fetch_hosts": ["media.test"]}
    assert fetch(at(files, "a.png", host="media.test"), **named) == (".png", DATA)
    assert asked == ["media.test", "media.test"]
    assert files.asked == [("/a.png", f"media.test:{files.server_port}")]


def certificate(folder, *names):
    """A self-signed certificate and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "avllm test")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = [x509.IPAddress(ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{names[0]}.pem"
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def test_the_certificate_is_that_of_the_name(fetch, tmp_path, monkeypatch):
    """Though the address is what is dialled."""
    for name, is_good in (("localhost", True), ("other.test", False)):
        path = certificate(tmp_path, name)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        with listening(context) as server:
            found = fetch(at(server, "a.png", "https", "localhost"), fetch_hosts=["localhost"])
            assert found == (".png", DATA) if is_good else found.code == "fetch_failed"
            assert len(server.asked) == is_good


PRIVATE = """
0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.8.8.8 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.9
192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
:: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1
2001:0:7f00:1:: 2001:db8::1 2001:20::1 2002:7f00:1:: 2002:808:808:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1
fe80::1%eth0 fec0::1 ff02::1 ff0e::1 2606:4700::1%1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_an_address_that_is_not_public_is_known(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "172.32.0.1", "192.0.1.1", "2606:4700::1111", "2a00:1450:4001::64"]
)
def test_a_public_address_is_known(address):
    assert is_public(address)


def test_files_below_allowed_folders_alone_are_read(tmp_path):
    """What a name leads to decides, and nobody learns what exists elsewhere."""
    folder, secret = tmp_path / "allowed", tmp_path / "secret.png"
    (folder / "below.png").mkdir(parents=True)
    for path in (secret, folder / "a b.png", folder / "below.png" / "c.JPG", folder / "notes.txt"):
        path.write_bytes(DATA)
    (folder / "inside.png").symlink_to(folder / "a b.png")
    (folder / "outside.png").symlink_to(secret)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo.png")
    good = {"a%20b.png": "png", "below.png/c.JPG": "JPG", "inside.png": "png", "../allowed/a%20b.png": "png"}
    for name, extension in good.items():
        file, found = open_allowed(f"file://{folder}/{name}", [str(folder)], ACCEPTED["image_url"], "url")
        with file:
            assert (file.read(), found) == (DATA, extension.lower())
    bad = """../secret.png %2e%2e/secret.png up/secret.png outside.png loop.png fifo.png below.png notes.txt
        nothing.png a%20b.png%00 a%20b.png?x %ff.png nothing/../a%2fb.png"""
    urls = [f"file://{folder}/{name}" for name in bad.split()]
    urls += [
        "file:///etc/passwd",
        "file:///dev/zero",
        f"file://elsewhere{folder}/inside.png",
        "file:",
        "file:inside.png",
    ]
    said = set()
    for url in urls:
        with pytest.raises(ApiError) as refused:
            open_allowed(url, [str(folder)], ACCEPTED["image_url"], "url")
        said.add(refused.value.message)
    assert len(said) == 1
    with pytest.raises(ApiError):
        open_allowed(f"file://{folder}/inside.png", [str(tmp_path / "gone")], ACCEPTED["image_url"], "url")
