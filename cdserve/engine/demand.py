"""Distributes free slots among API server processes."""

from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.sharedctypes import SynchronizedArray
from typing import NamedTuple, TypeAlias

SharedServers: TypeAlias = "SynchronizedArray[int]"
"""The ``Server`` records of all API servers, in shared memory."""


class Server(NamedTuple):
    """Shared record of one API server.

    Attributes:
        running: slots that it holds.
        waiting: candidates that wait for a slot.
        requests: requests with candidates that run or wait.
        turn: order in which servers last took a slot; the larger, the later.
    """

    running: int
    waiting: int
    requests: int
    turn: int


_WIDTH = len(Server._fields)


def shared_servers(servers: int) -> SharedServers:
    """Shared memory for this number of servers; spawned processes can receive it."""
    return get_context("spawn").Array("q", servers * _WIDTH)


class Demand:
    """Takes free slots for one API server and returns them.

    Slots are taken under a lock, so the servers never hold more than there are.

    Args:
        shared: records of all servers.
        index: index of this server.
    """

    def __init__(self, shared: SharedServers, index: int) -> None:
        self._shared = shared
        self._index = index

    @property
    def others(self) -> tuple[int, int]:
        """Slots that the other servers hold, and their requests that hold or await some."""
        servers = [server for i, server in enumerate(self._servers()) if i != self._index]
        return sum(one.running for one in servers), sum(one.requests for one in servers)

    def take(self, count: int, waiting: int, requests: int) -> int:
        """Takes this server's share of the free slots.

        Args:
            count: total number of slots.
            waiting: candidates of this server that wait for a slot.
            requests: requests with candidates that run or wait.

        Returns:
            Number of slots taken, at most ``waiting``.
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
        """Returns slots."""
        with self._shared.get_lock():
            own = self._servers()[self._index]
            self._publish(own._replace(running=own.running - slots))

    def _servers(self) -> list[Server]:
        shared = self._shared[:]
        return [Server(*shared[at : at + _WIDTH]) for at in range(0, len(shared), _WIDTH)]

    def _publish(self, own: Server) -> None:
        self._shared[self._index * _WIDTH : (self._index + 1) * _WIDTH] = own


def parts(free: int, servers: Sequence[Server]) -> list[int]:
    """Divides free slots among servers: max-min fair, weighted by requests.

    Each slot goes to the waiting server with the fewest slots per request; ties go to the server
    that took a slot least recently.
    """
    taken = [0] * len(servers)

    def following(i: int) -> tuple[float, int]:
        return (servers[i].running + taken[i]) / servers[i].requests, servers[i].turn

    for _ in range(min(free, sum(server.waiting for server in servers))):
        wanting = [i for i, server in enumerate(servers) if taken[i] < server.waiting]
        taken[min(wanting, key=following)] += 1
    return taken
