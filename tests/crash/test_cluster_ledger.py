"""Nodes and darners of a cluster fail at random; what clients were told is compared with what comes out.

Three nats-servers and three darners, with producers and consumers on each. A round has a seed, which its
failure prints: `pytest -m long -k "[seed]"` repeats its faults.
"""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_clients import UNCERTAIN, Clients, Got, Ledger, fetch
from cluster_darners import ACCOUNTS, ClusterDarner, cluster_darners
from nats_cluster import NatsCluster, nats_cluster
from nats_node import NatsNode
from running import until

# a round takes 50 s, and more on a machine that does much else
pytestmark = pytest.mark.timeout(300)

ACK_WAIT_S = 2
# How long a set may take until it is answered, whatever is down.
BOUND_S = 25.0
# A reservation that took no longer cannot have lapsed.
SURE_S = ACK_WAIT_S * 0.9
ONCE, JOBS, NEWS, CHILD = b"once", b"jobs", b"news", b"news+a"
STREAM = {ONCE: "darner_once", JOBS: "darner_jobs", NEWS: "darner_news"}
LONG_SEEDS = range(2, 19)


class Scene:
    """A cluster, darners before it, and clients at work."""

    def __init__(self, directory: Path, cluster: NatsCluster, darners: list[ClusterDarner]) -> None:
        self.directory = directory
        self.cluster = cluster
        self.darners = darners
        self.clients = Clients()
        with contextlib.closing(darners[0].connect()) as wire:
            assert wire.get(CHILD) is None
            for queue in STREAM:
                assert wire.set(queue, b"first") == b"STORED\r\n"
        for number, darner in enumerate(darners):
            for queue in STREAM:
                self.clients.produce(darner, queue, b"%s %d" % (queue, number), 0.005)
            self.clients.take(darner, ONCE)
            self.clients.read(darner, JOBS, 0.001 * number, SURE_S)
            self.clients.read(darner, CHILD, 0, SURE_S)
        self.clients.take(darners[1], NEWS)
        until(lambda: all(self._has_begun()))

    def _has_begun(self) -> Iterator[bool]:
        producers = len(self.darners) * len(STREAM)
        yield sum(count > 0 for count in self.clients.counted()) == producers

    def go_on(self, seconds: float = 1.0) -> None:
        """Let the clients work for so long."""
        time.sleep(seconds)

    def end(self) -> Ledger:
        """Return the ledger, once all that works has come to rest."""
        self.cluster.heal()
        self.cluster.start()
        for darner in self.darners:
            darner.start()
        return self.clients.end(ACK_WAIT_S * 2.5)


@contextlib.contextmanager
def scene(directory: Path, *, can_cut: bool = False) -> Iterator[Scene]:
    """Yield a scene with its files below this directory."""
    with (
        nats_cluster(directory, sync_interval="always", can_cut=can_cut, extra=ACCOUNTS) as cluster,
        cluster_darners(directory, cluster, 3, ACK_WAIT_S) as darners,
    ):
        yield Scene(directory, cluster, darners)


def check(ledger: Ledger) -> None:
    """Check that what the clients were told is true."""
    for queue, whole in ((ONCE, ledger.all_got(ONCE)), (NEWS, ledger.all_got(NEWS))):
        taken = Counter(got.name for got in whole)
        twice = [got for got in whole if taken[got.name] > 1]
        assert not twice, "a plain get gave an item twice"
        lost = set(ledger.acknowledged[queue]) - taken.keys()
        assert len(lost) <= ledger.cut_off[queue], f"{queue!r}: lost {sorted(lost)}, {ledger.cut_off}"
        assert_known(ledger, queue, taken.keys())
        assert_in_order_of_sets(ledger.acknowledged[queue], whole)
        for series in ledger.got[queue]:
            assert_first_deliveries_in_order(series)
    for queue, set_to in ((JOBS, JOBS), (CHILD, NEWS)):
        closed = Counter(name for name in ledger.closed[queue] if name != b"first")
        assert max(closed.values()) == 1, "a closed item came back"
        seen = closed.keys() | set(ledger.closing.get(queue, []))
        lost = set(ledger.acknowledged[set_to]) - seen
        assert not lost, f"{queue!r}: lost {sorted(lost)}"
        assert_known(ledger, set_to, seen)


def assert_known(ledger: Ledger, queue: bytes, names: set[bytes]) -> None:
    known = {*ledger.acknowledged[queue], *ledger.perhaps_set.get(queue, []), b"first"}
    assert names <= known, "an item came from nowhere"


def assert_in_order_of_sets(acknowledged: list[bytes], whole: list[Got]) -> None:
    """Check that the ids of the items of one producer, who waits for each answer, rise."""
    ids = {got.name: got.id for got in whole}
    last: dict[bytes, int] = {}
    for name in acknowledged:
        if name in ids:
            who = name.rpartition(b" ")[0]
            assert last.get(who, 0) < ids[name], f"{name!r} stands before an earlier one"
            last[who] = ids[name]


def assert_first_deliveries_in_order(series: list[Got]) -> None:
    """Check that items which have not come back reach a connection in their order."""
    ids = [got.id for got in series if not got.attempts]
    assert ids == sorted(ids)


# Faults


def kill_darner(scene: Scene, chance: random.Random) -> None:
    """Kill a darner that has an item reserved: the item comes to another one after `ack_wait`."""
    dead, other = chance.sample(scene.darners, 2)
    queue = b"held%d" % chance.getrandbits(32)
    with contextlib.closing(dead.connect()) as holder, contextlib.closing(other.connect()) as next_one:
        assert holder.set(queue, b"item") == b"STORED\r\n"
        found = fetch(holder, queue + b"/open/t=10000")
        assert found is not None
        assert found[1] == b"item"
        before = time.monotonic()
        dead.kill()
        again = fetch(next_one, queue + b"/t=15000")
        assert again is not None, "an item that a dead darner held did not come back"
        assert again[1] == b"item"
        # the cluster's clock began when it sent the item, up to a turn of the darner earlier
        assert ACK_WAIT_S / 3 - 0.2 < time.monotonic() - before < ACK_WAIT_S + 5
    dead.start()


def pause_darner(scene: Scene, chance: random.Random) -> None:
    """Stop a darner for less than `ack_wait`, and another time for longer."""
    for seconds in (0.7 * ACK_WAIT_S, 2 * ACK_WAIT_S):
        chance.choice(scene.darners).pause(seconds)
        scene.go_on(0.5)


def _node(scene: Scene, chance: random.Random, *, leads: bool) -> NatsNode:
    stream = STREAM[chance.choice(sorted(STREAM))]
    leader = scene.cluster.leader_of(stream)
    return leader if leads else chance.choice([node for node in scene.cluster.nodes if node is not leader])


def kill_leader(scene: Scene, chance: random.Random) -> None:
    node = _node(scene, chance, leads=True)
    node.kill()
    scene.go_on(7)
    scene.cluster.start()


def kill_follower(scene: Scene, chance: random.Random) -> None:
    node = _node(scene, chance, leads=False)
    node.kill()
    scene.go_on(2)
    scene.cluster.start()


def pause_leader(scene: Scene, chance: random.Random) -> None:
    node = _node(scene, chance, leads=True)
    node.pause()
    scene.go_on(11)
    node.resume()
    scene.cluster.wait_until_ready()


def pause_follower(scene: Scene, chance: random.Random) -> None:
    node = _node(scene, chance, leads=False)
    node.pause()
    scene.go_on(chance.choice((1.0, 6.0)))
    node.resume()
    scene.cluster.wait_until_ready()


def cut_off_a_node(scene: Scene, chance: random.Random) -> None:
    """Cut a node from the others, while its darners and clients still reach it."""
    scene.cluster.isolate(_node(scene, chance, leads=chance.random() < 0.7))
    scene.go_on(8)
    scene.cluster.heal(loses=chance.random() < 0.5)
    scene.cluster.wait_until_ready()


def old_disk(scene: Scene, chance: random.Random) -> None:
    """Have a node come back with the disk that it had a while ago; the others are up to date."""
    scene.cluster.wait_until_ready()
    node = _node(scene, chance, leads=chance.random() < 0.5)
    copy = scene.directory / f"copy-{chance.getrandbits(32)}"
    node.copy_disk(copy)
    scene.go_on(2)
    scene.cluster.wait_until_ready()
    node.kill()
    node.restore_disk(copy)
    scene.cluster.start()


FAULTS = (
    kill_darner, pause_darner, kill_leader, kill_follower, pause_leader, pause_follower, cut_off_a_node,
    old_disk,
)  # fmt: skip
# What finds most in the least time.
FIRST_ROUND = (kill_darner, pause_darner, kill_leader)


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.long) for n in LONG_SEEDS)])
def test_what_was_acknowledged_survives_nodes_and_darners_that_fail(tmp_path, seed):
    chance = random.Random(seed)
    faults = FIRST_ROUND if seed == 1 else chance.sample(FAULTS, 3)
    names = [fault.__name__ for fault in faults]
    print(f"seed {seed}: {' '.join(names)}")
    with scene(tmp_path, can_cut=cut_off_a_node in faults) as work:
        for fault in faults:
            fault(work, chance)
            work.go_on()
        ledger = work.end()
    print(
        f"{sum(map(len, ledger.acknowledged.values()))} acknowledged, {ledger.refused_sets} {ledger.refusals}"
    )
    check(ledger)
    assert ledger.slowest_s < BOUND_S


@pytest.mark.long
def test_with_two_of_three_nodes_gone_sets_are_refused_within_a_bound_and_all_returns(tmp_path):
    with scene(tmp_path) as work:
        gone = work.cluster.nodes[:2]
        gone[0].kill()
        gone[1].pause()
        refused: list[bytes] = []
        wires = [darner.connect() for darner in work.darners]

        def refuse(number: int) -> None:
            before = time.monotonic()
            reply = wires[number].set(ONCE, b"%s 9 %06d" % (ONCE, number))
            assert time.monotonic() - before < BOUND_S
            refused.append(reply)

        threads = [threading.Thread(target=refuse, args=(number,)) for number in range(len(wires))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [reply[:12] for reply in refused] == [b"SERVER_ERROR"] * len(wires), refused
        gone[1].resume()
        work.cluster.start()
        for wire in wires:
            until(lambda wire=wire: wire.set(JOBS, b"first") == b"STORED\r\n")
            wire.close()
        work.go_on()
        ledger = work.end()
    ledger.perhaps_set[ONCE] += [b"%s 9 %06d" % (ONCE, number) for number in range(len(wires))]
    check(ledger)
    assert ledger.slowest_s < BOUND_S


def test_all_nodes_and_darners_are_restarted_one_by_one_and_clients_see_at_most_a_reconnect(tmp_path):
    with scene(tmp_path) as work:
        work.cluster.restart_each()
        for darner in work.darners:
            darner.stop()
            darner.start()
            work.go_on(0.3)
        ledger = work.end()
    check(ledger)
    assert not ledger.refused_sets
    # an item that a leader sent right before it went may come back, of which its get tells
    assert all(any(reason in said for reason in UNCERTAIN) for said in ledger.refusals), ledger.refusals
