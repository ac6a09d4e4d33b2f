"""ssl over an accelerated socket: TLS from the start and after plain bytes; every byte arrives."""

from __future__ import annotations

import ssl
import subprocess

import pytest

from .streams import MIB, pattern, receive_exactly
from .waiting import PATIENCE_S, Background


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost: (certificate file, key file)."""
    where = tmp_path_factory.mktemp("certificate")
    cert, key = where / "cert.pem", where / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=PATIENCE_S)
    return cert, key


@pytest.fixture
def contexts(certificate):
    cert, key = certificate
    client, server = ssl.create_default_context(cafile=cert), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return client, server


def wrap(net, contexts, client, server):
    """Return both ends wrapped, after a handshake."""
    serving = Background(lambda: contexts[1].wrap_socket(server, server_side=True))
    wrapped = net.keep(contexts[0].wrap_socket(client, server_hostname="localhost"))
    return wrapped, net.keep(serving.result())


def test_tls_carries_bytes_both_ways(net, contexts):
    client, server = wrap(net, contexts, *net.pair())
    assert client.version() == server.version() == "TLSv1.3"
    back = Background(server.sendall, pattern(4 * MIB, 1))
    forth = Background(client.sendall, pattern(4 * MIB, 2))
    reading = Background(receive_exactly, server, 4 * MIB)
    assert receive_exactly(client, 4 * MIB) == pattern(4 * MIB, 1)
    assert reading.result() == pattern(4 * MIB, 2)
    back.result()
    forth.result()


def test_tls_starts_after_plain_bytes(net, contexts):
    client, server = net.pair()
    for turn in range(10):
        client.sendall(b"plain %d" % turn)
        assert receive_exactly(server, 7) == b"plain %d" % turn
        server.sendall(b"ok")
        assert receive_exactly(client, 2) == b"ok"
    net.assert_accelerated(client, server)
    client, server = wrap(net, contexts, client, server)
    client.sendall(b"secret")
    assert server.recv(100) == b"secret"
    server.sendall(b"too")
    assert client.recv(100) == b"too"


def test_tls_starts_when_the_hello_came_before_the_server_is_ready(net, contexts):
    client, server = net.pair()
    client.sendall(b"STARTTLS\n")
    greeting = Background(contexts[0].wrap_socket, client, False, True, True, "localhost")
    assert receive_exactly(server, 9) == b"STARTTLS\n"
    server = net.keep(contexts[1].wrap_socket(server, server_side=True))
    client = net.keep(greeting.result())
    client.sendall(b"hello")
    assert server.recv(10) == b"hello"


def test_tls_unwraps_to_plain_bytes(net, contexts):
    client, server = wrap(net, contexts, *net.pair())
    client.sendall(b"secret")
    assert server.recv(100) == b"secret"
    server.sendall(b"x")
    assert client.recv(1) == b"x"
    unwrapping = Background(server.unwrap)
    plain_client, plain_server = net.keep(client.unwrap()), net.keep(unwrapping.result())
    plain_client.sendall(b"plain again")
    assert receive_exactly(plain_server, 11) == b"plain again"


def test_tls_times_out_like_any_socket(net, contexts):
    client, _server = wrap(net, contexts, *net.pair())
    client.settimeout(0.05)
    with pytest.raises(TimeoutError, match="timed out"):
        client.recv(1)


def test_tls_wraps_before_connect(net, contexts):
    with net.listener() as listener:
        serving = Background(lambda: contexts[1].wrap_socket(listener.accept()[0], server_side=True))
        client = net.keep(contexts[0].wrap_socket(net.new(), server_hostname="localhost"))
        client.connect(listener.getsockname())
        server = net.keep(serving.result())
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_tls_listener_wraps_what_it_accepts(net, contexts):
    with net.keep(contexts[1].wrap_socket(net.listener(), server_side=True)) as listener:
        serving = Background(listener.accept)
        client = net.connect(listener.getsockname())
        client = net.keep(contexts[0].wrap_socket(client, server_hostname="localhost"))
        server = net.keep(serving.result()[0])
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_tls_close_ends_the_peers_stream(net, contexts):
    client, server = wrap(net, contexts, *net.pair())
    client.sendall(b"last")
    client.close()
    assert server.recv(10) == b"last"
    assert server.recv(10) == b""


def test_tls_refused_by_the_client_is_an_error_on_both_ends(net, contexts):
    client, server = net.pair()
    serving = Background(lambda: contexts[1].wrap_socket(server, server_side=True))
    with pytest.raises(ssl.SSLCertVerificationError):
        contexts[0].wrap_socket(client, server_hostname="elsewhere.example")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        serving.result()
