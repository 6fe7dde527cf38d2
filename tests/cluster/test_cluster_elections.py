"""What a darner tells of queues whose leader has failed, before there is another one."""

import contextlib
import re

from cluster_darners import ACCOUNTS, ClusterDarner, cluster_darners
from nats_cluster import NatsCluster, nats_cluster
from nats_node import NatsNode
from running import Wire


def idle_node(cluster: NatsCluster) -> NatsNode:
    """Return a node that the darner is not connected to, and that does not lead the cluster."""
    leader = cluster.meta_leader()
    return next(
        node
        for node in cluster.nodes
        if node is not leader and all(each["name"] != "darner" for each in node.ask("/connz")["connections"])
    )


def set_up_to_a_queue_led_by(node: NatsNode, cluster: NatsCluster, darner: ClusterDarner) -> bytes:
    """Set an item to queues until this node alone is the leader of the consumer of one, and another one that
    of its stream; return its name."""
    with contextlib.closing(darner.connect()) as wire:
        for number in range(60):
            name = b"queue%d" % number
            assert wire.set(name, b"x") == b"STORED\r\n"
            stream = f"darner_{name.decode()}"
            if cluster.leader_of(stream) is not node and cluster.leader_of(stream, name.decode()) is node:
                return name
    raise AssertionError(f"{node.name} leads none of 60 consumers")


def items(wire: Wire) -> dict[str, str]:
    """Return how many items `stats` says that each queue has."""
    return {key: value for key, value in wire.stats().items() if re.fullmatch("queue_.*_items", key)}


def test_queue_without_a_leader_stands_in_stats_with_its_last_figures(tmp_path):
    with (
        nats_cluster(tmp_path, sync_interval="always", extra=ACCOUNTS) as cluster,
        cluster_darners(tmp_path, cluster, 1, 30) as (darner,),
    ):
        node = idle_node(cluster)
        name = set_up_to_a_queue_led_by(node, cluster, darner)
        with contextlib.closing(darner.connect()) as wire:
            before = items(wire)
            node.pause()
            assert before[f"queue_{name.decode()}_items"] == "1"
            assert items(wire) == before
