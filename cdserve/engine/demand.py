"""What API server processes hold of the slots that they share, and who takes a free one."""

from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.sharedctypes import SynchronizedArray
from typing import NamedTuple, TypeAlias

SharedServers: TypeAlias = "SynchronizedArray[int]"
"""A ``Server`` of each API server, one after another. The processes share it."""


class Server(NamedTuple):
    """What all servers know of one.

    Attributes:
        running: slots that it holds.
        waiting: candidates that wait for one.
        requests: that both belong to.
        turn: when it last took one; the larger, the later.
    """

    running: int
    waiting: int
    requests: int
    turn: int


_WIDTH = len(Server._fields)


def shared_servers(servers: int) -> SharedServers:
    """Shared memory for so many servers, which processes that are spawned can be given."""
    return get_context("spawn").Array("q", servers * _WIDTH)


class Demand:
    """One server's place among all: it takes slots that are free, and gives them back.

    All of them together never hold more than there are, since a slot is taken under a lock.

    Args:
        shared: what the servers say of themselves.
        index: this server's.
    """

    def __init__(self, shared: SharedServers, index: int) -> None:
        self._shared = shared
        self._index = index

    def take(self, count: int, waiting: int, requests: int) -> int:
        """Takes this server's part of the free slots, now.

        Args:
            count: slots of all servers.
            waiting: candidates of this server that wait for one.
            requests: that they and those with a slot belong to.

        Returns:
            How many it took, at most ``waiting``.
        """
        with self._shared.get_lock():
            servers = self._servers()
            own = servers[self._index]._replace(waiting=waiting, requests=requests)
            servers[self._index] = own
            free = count - sum(server.running for server in servers)
            part = parts(free, servers)[self._index]
            turn = 1 + max(server.turn for server in servers) if part else own.turn
            self._publish(Server(own.running + part, waiting - part, requests, turn))
        return part

    def give_back(self, slots: int) -> None:
        """Gives slots back."""
        with self._shared.get_lock():
            own = self._servers()[self._index]
            self._publish(own._replace(running=own.running - slots))

    def _servers(self) -> list[Server]:
        shared = self._shared[:]
        return [Server(*shared[at : at + _WIDTH]) for at in range(0, len(shared), _WIDTH)]

    def _publish(self, own: Server) -> None:
        self._shared[self._index * _WIDTH : (self._index + 1) * _WIDTH] = own


def parts(free: int, servers: Sequence[Server]) -> list[int]:
    """Parts of the free slots, by server: max-min fair, weighed by requests.

    Each slot goes to the server that holds the fewest for its requests. So one that holds none is
    first. Of several it goes to the one that has not taken any for longest.
    """
    taken = [0] * len(servers)

    def following(i: int) -> tuple[float, int]:
        return (servers[i].running + taken[i]) / servers[i].requests, servers[i].turn

    for _ in range(min(free, sum(server.waiting for server in servers))):
        wanting = [i for i, server in enumerate(servers) if taken[i] < server.waiting]
        taken[min(wanting, key=following)] += 1
    return taken
