"""A stand-in for a MongoDB server: the wire protocol over mongomock's collections.

No package of Debian's or PyPI's has the real server. With this one the tests still use the real client, over real
connections, from several processes and through outages; what commands mean is mongomock's word. Where there is a real
server, ``AMQPTASKS_TEST_MONGODB_URL`` takes its place.
"""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bson
import mongomock
import pymongo.errors

_REPLY, _QUERY, _MESSAGE = 1, 2004, 2013
_HEADER = struct.Struct("<iiii")


class MongoServer:
    """One server on a free port of this machine. Its data outlives a stop."""

    def __init__(self) -> None:
        self.port = 0
        self._client: Any = mongomock.MongoClient()
        self._lock = threading.Lock()
        self._server: Any = None
        self._connections: set[socket.socket] = set()
        self.start()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False
            request_queue_size = 100

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """End every connection, and take no new ones."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._connections:
                connection.shutdown(socket.SHUT_RDWR)
            self._connections.clear()

    def database(self, name: str) -> Any:
        """The data, past the wire."""
        return self._client[name]

    # -- the wire

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            while True:
                head = _read(connection, _HEADER.size)
                length, request, _, kind = _HEADER.unpack(head)
                body = _read(connection, length - _HEADER.size)
                answer = self._answer(_command(kind, body))
                if kind == _QUERY:
                    data = struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(answer)
                    kind = _REPLY
                else:
                    data = struct.pack("<iB", 0, 0) + bson.encode(answer)
                connection.sendall(_HEADER.pack(_HEADER.size + len(data), 0, request, kind) + data)
        except OSError:
            return
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _answer(self, command: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(command))
        run = getattr(self, f"_do_{name.lower()}", None)
        if run is None:
            return {"ok": 0.0, "code": 59, "errmsg": f"no such command: {name}"}
        with self._lock:
            return {"ok": 1.0, **run(command, command[name])}

    # -- commands

    @staticmethod
    def _do_hello(command: dict[str, Any], _value: Any) -> dict[str, Any]:
        return {
            "isWritablePrimary": True, "ismaster": True, "helloOk": True, "maxBsonObjectSize": 16 * 1024 * 1024,
            "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "minWireVersion": 0, "maxWireVersion": 21,
            "logicalSessionTimeoutMinutes": 30, "readOnly": False,
        }  # fmt: skip

    _do_ismaster = _do_hello

    @staticmethod
    def _do_endsessions(_command: dict[str, Any], _value: Any) -> dict[str, Any]:
        return {}

    _do_ping = _do_endsessions

    def _collection(self, command: dict[str, Any], name: str) -> Any:
        return self._client[command["$db"]][name]

    def _do_find(self, command: dict[str, Any], name: str) -> dict[str, Any]:
        found = list(self._collection(command, name).find(command.get("filter") or {}).limit(command.get("limit", 0)))
        return {"cursor": {"id": bson.Int64(0), "ns": f"{command['$db']}.{name}", "firstBatch": found}}

    def _do_update(self, command: dict[str, Any], name: str) -> dict[str, Any]:
        changed, upserted, errors = 0, [], []
        for index, each in enumerate(command["updates"]):
            try:
                done = self._collection(command, name).replace_one(each["q"], each["u"], upsert=each.get("upsert"))
            except (pymongo.errors.DuplicateKeyError, mongomock.DuplicateKeyError) as error:
                errors.append({"index": index, "code": 11000, "errmsg": f"E11000 duplicate key error: {error}"})
                continue
            changed += done.matched_count
            if done.upserted_id is not None:
                upserted.append({"index": index, "_id": done.upserted_id})
        answer: dict[str, Any] = {"n": changed + len(upserted), "nModified": changed}
        return answer | ({"upserted": upserted} if upserted else {}) | ({"writeErrors": errors} if errors else {})

    def _do_delete(self, command: dict[str, Any], name: str) -> dict[str, Any]:
        collection, deleted = self._collection(command, name), 0
        for each in command["deletes"]:
            delete = collection.delete_one if each["limit"] == 1 else collection.delete_many
            deleted += delete(each["q"]).deleted_count
        return {"n": deleted}

    def _do_createindexes(self, command: dict[str, Any], name: str) -> dict[str, Any]:
        collection = self._collection(command, name)
        for each in command["indexes"]:
            options = {key: each[key] for key in ("name", "expireAfterSeconds") if key in each}
            known = collection.index_information().get(each["name"])
            if known is not None and known.get("expireAfterSeconds") != options.get("expireAfterSeconds"):
                return {"ok": 0.0, "code": 85, "errmsg": "An equivalent index already exists with other options"}
            collection.create_index(list(each["key"].items()), **options)
        return {}

    def _do_dropdatabase(self, command: dict[str, Any], _value: Any) -> dict[str, Any]:
        self._client.drop_database(command["$db"])
        return {}


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data


def _command(kind: int, body: bytes) -> dict[str, Any]:
    if kind == _QUERY:
        # Flags, the collection's name, how many to skip and to return.
        end = body.index(b"\0", 4) + 9
        return bson.decode(body[end : end + struct.unpack_from("<i", body, end)[0]])
    assert kind == _MESSAGE, f"a message of kind {kind} came"
    flags, position, command = struct.unpack_from("<I", body)[0], 4, {}
    end = len(body) - (4 if flags & 1 else 0)
    while position < end:
        section, position = body[position], position + 1
        size = struct.unpack_from("<i", body, position)[0]
        part, position = body[position : position + size], position + size
        if section == 0:
            command = {**bson.decode(part), **command}
        else:
            name, _, documents = part[4:].partition(b"\0")
            command[name.decode()] = bson.decode_all(documents)
    return command


@contextmanager
def mongodb(server: MongoServer) -> Iterator[str]:
    """The URL of a database of its own, in this server, or in the real one that the environment names."""
    name = f"amqptasks_{uuid.uuid4().hex[:12]}"
    url = os.environ.get("AMQPTASKS_TEST_MONGODB_URL")
    if not url:
        yield f"mongodb://{server.address}/{name}"
        return
    base, _, query = url.partition("?")
    yield f"{base.rstrip('/')}/{name}" + (f"?{query}" if query else "")
    with pymongo.MongoClient(url) as client:
        client.drop_database(name)
