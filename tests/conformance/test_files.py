"""makefile and sendfile."""

from __future__ import annotations

import io
import os
import socket

import pytest

from .streams import MIB, pattern, receive_all, receive_exactly
from .waiting import Background


@pytest.fixture
def source(tmp_path):
    """A file of 3 MiB and 11 bytes, opened for reading."""
    path = tmp_path / "source"
    path.write_bytes(pattern(3 * MIB + 11))
    with path.open("rb") as file:
        yield file


def test_makefile_reads_lines(net, pair):
    client, server = pair()
    client.sendall(b"one\ntwo\nthree")
    client.close()
    with server.makefile("rb") as file:
        assert file.readline() == b"one\n"
        assert file.readlines() == [b"two\n", b"three"]


def test_makefile_writes_when_flushed(net):
    client, server = net.pair()
    with client.makefile("wb") as file:
        assert file.write(b"buffered") == 8
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(10)
        file.flush()
        server.setblocking(True)
        assert server.recv(10) == b"buffered"
        file.write(b" at close")
    assert receive_exactly(server, 9) == b" at close"
    net.assert_accelerated(client, server)


def test_makefile_text_translates_newlines_and_encodes(net):
    client, server = net.pair()
    with client.makefile("w", encoding="utf-16-le", newline="\r\n") as file:
        file.write("grüße\n")
    client.close()
    with server.makefile("r", encoding="utf-16-le") as file:
        assert file.read() == "grüße\n"


def test_makefile_unbuffered_writes_at_once_and_reads_what_is_there(net):
    client, server = net.pair()
    raw = net.keep(client.makefile("wb", buffering=0))
    assert isinstance(raw, socket.SocketIO)
    assert raw.write(b"abc") == 3
    reader = net.keep(server.makefile("rb", buffering=0))
    assert reader.read(10) == b"abc"
    assert raw.fileno() == client.fileno()
    assert (raw.writable(), raw.readable(), raw.seekable()) == (True, False, False)


@pytest.mark.parametrize(("mode", "buffering", "kind"), [
    ("r", None, io.TextIOWrapper), ("w", None, io.TextIOWrapper), ("rw", None, io.TextIOWrapper),
    ("rb", None, io.BufferedReader), ("wb", 1000, io.BufferedWriter), ("rwb", None, io.BufferedRWPair),
    ("rwb", 0, socket.SocketIO), ("br", None, io.BufferedReader),
])
def test_makefile_gives_the_usual_kind_of_file(net, mode, buffering, kind):
    client, _server = net.pair()
    with client.makefile(mode, buffering) as file:
        assert type(file) is kind


def test_makefile_refuses_other_modes_and_unbuffered_text(net):
    client, _server = net.pair()
    for arguments in (("x",), ("a",), ("r", 0)):
        with pytest.raises(ValueError):
            client.makefile(*arguments)


def test_makefile_keeps_the_connection_open_after_the_socket_is_closed(net):
    client, server = net.pair()
    file = client.makefile("rwb")
    client.close()
    assert client.fileno() >= 0
    file.write(b"still here")
    file.flush()
    assert server.recv(100) == b"still here"
    server.sendall(b"so am I")
    assert file.read(7) == b"so am I"
    file.close()
    assert client.fileno() == -1
    assert server.recv(1) == b""


def test_makefile_readinto_and_peek_work(net):
    client, server = net.pair()
    client.sendall(b"0123456789")
    with server.makefile("rb") as file:
        assert file.peek(1)[:1] == b"0"
        buffer = bytearray(4)
        assert file.readinto(buffer) == 4
        assert buffer == b"0123"
        assert file.read1(100) == b"456789"


def test_makefile_after_a_timeout_refuses_to_read_on(net):
    _client, server = net.pair()
    server.settimeout(0.05)
    with server.makefile("rb") as file:
        with pytest.raises(TimeoutError):
            file.read(1)
        with pytest.raises(OSError, match="cannot read from timed out object"):
            file.read(1)


def test_makefile_nonblocking_returns_none_when_nothing_is_there(net):
    client, server = net.pair()
    server.setblocking(False)
    file = net.keep(server.makefile("rb", buffering=0))
    assert file.read(1) is None
    client.sendall(b"x")
    assert net.select.select([file], [], [], 20)[0] == [file]
    assert file.read(10) == b"x"


def test_sendfile_sends_the_whole_file_and_moves_its_position(net, source):
    client, server = net.pair()
    sending = Background(client.sendfile, source)
    assert receive_exactly(server, 3 * MIB + 11) == pattern(3 * MIB + 11)
    assert sending.result() == source.tell() == 3 * MIB + 11
    client.sendall(b"!")
    server.sendall(b"!")
    assert server.recv(1) == client.recv(1) == b"!"


def test_sendfile_sends_a_part(net, source):
    client, server = net.pair()
    assert client.sendfile(source, offset=1000, count=5000) == 5000
    assert source.tell() == 6000
    assert receive_exactly(server, 5000) == pattern(3 * MIB + 11)[1000:6000]


def test_sendfile_mixes_with_send_in_order(net, source):
    client, server = net.pair()
    client.sendall(b"before ")
    client.sendfile(source, count=20_000)
    client.sendall(b" after")
    source.seek(0)
    client.sendfile(source, count=10)
    client.close()
    data = pattern(3 * MIB + 11)
    assert receive_all(server) == b"before " + data[:20_000] + b" after" + data[:10]


def test_sendfile_of_an_empty_file_sends_nothing(net, tmp_path):
    client, server = net.pair()
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        assert client.sendfile(file) == 0
    client.close()
    assert server.recv(1) == b""


def test_sendfile_of_a_file_without_descriptor_falls_back_to_send(net):
    client, server = net.pair()
    assert client.sendfile(io.BytesIO(b"in memory"), offset=3) == 6
    assert receive_exactly(server, 6) == b"memory"


def test_sendfile_refuses_text_files_negative_counts_and_nonblocking_sockets(net, source, tmp_path):
    client, _server = net.pair()
    with (tmp_path / "source").open("r", encoding="latin-1") as text, pytest.raises(ValueError, match="binary"):
        client.sendfile(text)
    for count in (0, -1):
        with pytest.raises(ValueError, match="positive"):
            client.sendfile(source, count=count)
    client.setblocking(False)
    with pytest.raises(ValueError, match="non-blocking"):
        client.sendfile(source)


def test_os_sendfile_to_the_descriptor_keeps_the_order(net, source):
    client, server = net.pair()
    client.sendall(b"by send, ")
    assert os.sendfile(client.fileno(), source.fileno(), 0, 1000) == 1000
    assert receive_exactly(server, 1009) == b"by send, " + pattern(3 * MIB + 11)[:1000]
