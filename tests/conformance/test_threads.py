"""Several threads on one socket, and threads that run while another one waits in a socket call."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from .streams import MIB, pattern, receive_exactly
from .waiting import Background, asleep, eventually

RECORD = 100


def test_recv_in_several_threads_gives_each_byte_to_one_of_them(net):
    client, server = net.pair()

    def read():
        return list(iter(lambda: server.recv(1), b""))

    readers = [Background(read) for _ in range(4)]
    sent = bytes(range(256)) * 20
    client.sendall(sent)
    client.close()
    got = [byte for reader in readers for byte in reader.result()]
    assert sorted(got) == sorted(sent[at:at + 1] for at in range(len(sent)))


def test_send_in_several_threads_keeps_each_small_message_whole(net):
    client, server = net.pair()

    def write(letter):
        for _ in range(500):
            assert client.send(letter * RECORD) == RECORD

    writers = [Background(write, letter) for letter in (b"a", b"b", b"c")]
    seen = [receive_exactly(server, RECORD) for _ in range(1500)]
    for writer in writers:
        writer.result()
    assert {record: seen.count(record) for record in set(seen)} == dict.fromkeys(
        (b"a" * RECORD, b"b" * RECORD, b"c" * RECORD), 500)
    server.sendall(b".")
    assert client.recv(1) == b"."
    net.assert_ring(client, server)


def test_recv_waiting_does_not_keep_another_thread_from_sending(net):
    client, server = net.pair()
    reading = Background(client.recv, 10)
    eventually(lambda: asleep(reading), "the reader sleeps")
    client.sendall(b"question")
    assert server.recv(10) == b"question"
    server.sendall(b"answer")
    assert reading.result() == b"answer"
    net.assert_ring(client, server)


def test_send_waiting_does_not_keep_another_thread_from_receiving(net):
    client, server = net.pair()
    sending = Background(client.sendall, pattern(32 * MIB))
    eventually(lambda: asleep(sending), "the sender sleeps")
    server.sendall(b"meanwhile")
    assert client.recv(20) == b"meanwhile"
    assert receive_exactly(server, 32 * MIB) == pattern(32 * MIB)
    sending.result()


@pytest.mark.parametrize("call", ["recv", "send", "accept", "sendall", "recvmsg", "recv with timeout"])
def test_waiting_call_lets_other_python_code_run(net, call):
    client, server = net.pair()
    listener = net.listener()
    if "timeout" in call:
        client.settimeout(20)
    calls = {
        "recv": (client.recv, 1), "recv with timeout": (client.recv, 1), "recvmsg": (client.recvmsg, 1),
        "send": (client.send, bytes(64 * MIB)), "sendall": (client.sendall, bytes(64 * MIB)),
        "accept": (lambda: net.keep(listener.accept()[0]),),
    }
    waiting = Background(*calls[call])
    total = sum(number for number in range(200_000))
    assert total == 19_999_900_000
    assert waiting.is_alive()
    if "send" in call:
        assert len(receive_exactly(server, 64 * MIB)) == 64 * MIB
    else:
        server.sendall(b"x")
        net.connect(listener.getsockname())
    waiting.result()


def test_switch_interval_does_not_delay_a_ping_pong_of_two_threads(net):
    client, server = net.pair()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1.0)
    try:
        def echo():
            for _ in range(200):
                server.sendall(receive_exactly(server, 10))

        echoing = Background(echo)
        for _ in range(200):
            client.sendall(b"0123456789")
            assert receive_exactly(client, 10) == b"0123456789"
        echoing.result()
    finally:
        sys.setswitchinterval(before)
    net.assert_ring(client, server)


def test_many_clients_in_threads_are_served_by_threads(net):
    listener = net.listener(backlog=64)

    def serve(sock):
        with sock:
            while data := sock.recv(4096):
                sock.sendall(data)

    def accept_all():
        return [Background(serve, listener.accept()[0]) for _ in range(12)]

    def ask(number):
        with net.socket.create_connection(listener.getsockname()) as sock:
            for turn in range(50):
                data = pattern(1 + turn * 37, number)
                sock.sendall(data)
                assert receive_exactly(sock, len(data)) == data

    accepting = Background(accept_all)
    clients = [Background(ask, number) for number in range(12)]
    for thread in [*clients, *accepting.result()]:
        thread.result()


def test_connects_and_closes_in_many_threads_at_once_leave_nothing_behind(net):
    listener = net.listener(backlog=128)
    before = threading.active_count()

    def one_after_another(name):
        for turn in range(30):
            with net.socket.create_connection(listener.getsockname()) as sock:
                sock.sendall(b"%d %d" % (name, turn))
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(100) == b"seen"
                assert sock.recv(100) == b""

    def answer():
        for _ in range(120):
            with net.accept(listener) as sock:
                while sock.recv(100):
                    pass
                sock.sendall(b"seen")

    threads = [Background(answer), *(Background(one_after_another, name) for name in range(4))]
    for thread in threads:
        thread.result()
    assert threading.active_count() == before
