"""Connected pairs with one end in a peer process."""

from __future__ import annotations

import importlib
import socket

from .faces import LOOPBACK, family_of

ENDS = ("threads", "server-process", "client-process")


def server_there(net, peer):
    def pair(address=LOOPBACK):
        listener = net.keep(peer.run(listen_there, net.face, address))
        client = net.connect(listener.getsockname())
        server, name = listener.accept()
        listener.close()
        assert name == client.getsockname()
        return net.warm(client, net.keep(server))

    return pair


def client_there(net, peer):
    def pair(address=LOOPBACK):
        with net.listener(address) as listener:
            client = net.keep(peer.run(connect_there, net.face, listener.getsockname()))
            server, name = listener.accept()
        assert name == client.getsockname()
        return net.warm(client, net.keep(server))

    return pair


def module_there(face):
    return importlib.import_module("shmstack.socket") if face == "shmstack" else socket


def listen_there(face, address):
    return module_there(face).create_server(address, family=family_of(address))


def connect_there(face, address):
    sock = module_there(face).socket(family_of(address))
    sock.connect(address)
    return sock
