"""A cluster of nats-servers on loopback, whose nodes and connections can be made to fail.

Connections between nodes can be cut without root: with `can_cut` each node finds each other node through a
link of `tcp_links`, and advertises a port where nobody listens, so that no node learns a way around it.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats_node import NATS_SERVER, NatsNode
from reserved_ports import reserved_ports
from running import until
from tcp_links import Link, Links, tcp_links


class NatsCluster:
    """Nodes that are started and ended together; one alone is no cluster, and has no leaders to ask for."""

    def __init__(
        self, nodes: list[NatsNode], links: Links | None, between: dict[tuple[str, str], Link]
    ) -> None:
        self.nodes = nodes
        self._links = links
        self._between = between

    @property
    def urls(self) -> list[str]:
        """What clients connect to, one URL a node."""
        return [node.url for node in self.nodes]

    @property
    def answering(self) -> list[NatsNode]:
        """The nodes whose processes live and are not paused."""
        return [node for node in self.nodes if node.answers]

    def start(self) -> None:
        """Start the nodes that do not run, and wait until the cluster is ready."""
        for node in self.nodes:
            if not node.is_running:
                node.start()
        self.wait_until_ready()

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Wait until the nodes that can answer agree on a meta leader, and their streams are up to date."""
        until(self._is_ready, seconds)

    def _is_ready(self) -> bool:
        for node in self.nodes:
            node.check()
        return all(node.is_healthy for node in self.answering) and self._leader_is_known()

    def _leader_is_known(self) -> bool:
        if len(self.nodes) == 1:
            return True
        said = [(node.ask("/jsz") or {}).get("meta_cluster", {}) for node in self.answering]
        return len({meta.get("leader") for meta in said}) == 1 and all(
            meta.get("leader") and meta.get("cluster_size") == len(self.nodes) for meta in said
        )

    def node(self, name: str) -> NatsNode:
        """Return the node of this name."""
        return next(node for node in self.nodes if node.name == name)

    def meta_leader(self) -> NatsNode:
        """Return the leader of the cluster, once the nodes that can answer agree on one of them."""
        found: list[NatsNode] = []

        def is_found() -> bool:
            names = {
                (node.ask("/jsz") or {}).get("meta_cluster", {}).get("leader") for node in self.answering
            }
            found[:] = [node for node in self.answering if {node.name} == names]
            return bool(found)

        until(is_found)
        return found[0]

    def leader_of(self, stream: str, consumer: str | None = None) -> NatsNode:
        """Return the leader of a stream, or of a consumer of it, once one node that can answer says it is."""
        found: list[NatsNode] = []

        def is_found() -> bool:
            found[:] = [node for node in self.answering if _leads(node, stream, consumer)]
            return len(found) == 1

        until(is_found)
        return found[0]

    def cut(self, one: NatsNode, other: NatsNode) -> None:
        """Let nothing through between two nodes, in neither direction."""
        assert self._links, "this cluster was made without can_cut"
        self._links.cut(self._between[one.name, other.name], self._between[other.name, one.name])

    def isolate(self, node: NatsNode) -> None:
        """Cut a node from every other one; clients still reach it."""
        for other in self.nodes:
            if other is not node:
                self.cut(node, other)

    def heal(self, *, loses: bool = False) -> None:
        """Let everything through between all nodes; with `loses`, not what was sent during the cut."""
        if self._links:
            cut = [link for link in self._between.values() if link.is_cut]
            self._links.heal(*cut, loses=loses)

    def restart_each(self, binary: str | None = None) -> None:
        """Restart one node after the other, each once the last one is up to date.

        `binary` is the nats-server that they run from then on, if not the same as before.
        """
        for node in self.nodes:
            node.stop()
            node.binary = binary or node.binary
            node.start()
            self.wait_until_ready()

    def end(self) -> None:
        """Kill what still runs."""
        for node in self.nodes:
            if node.is_running:
                node.kill()


def _leads(node: NatsNode, stream: str, consumer: str | None) -> bool:
    said = node.ask("/jsz?accounts=true&streams=true&consumers=true") or {}
    for account in said.get("account_details", []):
        for details in account.get("stream_detail", []):
            if details["name"] != stream:
                continue
            if consumer is None:
                return _leader(details) == node.name
            return any(
                _leader(of_consumer) == node.name
                for of_consumer in details.get("consumer_detail", [])
                if of_consumer["name"] == consumer
            )
    return False


def _leader(details: dict[str, Any]) -> str | None:
    leader = details.get("cluster", {}).get("leader")
    assert leader is None or isinstance(leader, str)
    return leader


@contextlib.contextmanager
def nats_cluster(
    directory: Path,
    nodes: int = 3,
    *,
    sync_interval: str | None = None,
    can_cut: bool = False,
    extra: str = "",
) -> Iterator[NatsCluster]:
    """Start a cluster with its data below this directory, and kill it at the end.

    `sync_interval` is "always", a duration as "10s", or None for the server's default. `extra` is added to
    the configuration of each node. With `can_cut` all that the nodes say to each other goes through this
    process, which costs speed. The test is skipped where there is no nats-server.
    """
    if NATS_SERVER is None:
        pytest.skip("there is no nats-server")
    names = [f"n{number}" for number in range(1, nodes + 1)]
    pairs = list(itertools.permutations(names, 2)) if can_cut else []
    with contextlib.ExitStack() as stack:
        # client, monitoring and route port of each node, one that is dead, and one for each link
        ports = stack.enter_context(reserved_ports(3 * nodes + 1 + len(pairs)))
        own = {name: ports[3 * at : 3 * at + 3] for at, name in enumerate(names)}
        dead = ports[3 * nodes]
        links = stack.enter_context(tcp_links()) if can_cut else None
        between = {
            pair: links.open(port, own[pair[1]][2])
            for pair, port in zip(pairs, ports[3 * nodes + 1 :], strict=True)
            if links
        }
        made = [
            NatsNode(
                directory / name, name, own[name],
                [between[name, other].port if can_cut else own[other][2] for other in names if other != name],
                advertised=dead if can_cut else None, sync_interval=sync_interval, extra=extra,
            )
            for name in names
        ]  # fmt: skip
        cluster = NatsCluster(made, links, between)
        stack.callback(cluster.end)
        cluster.start()
        yield cluster
