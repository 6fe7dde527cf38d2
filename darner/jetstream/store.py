"""All queues of a cluster: the `Store` of a darner that keeps nothing itself."""

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

import structlog
from nats.aio.msg import Msg

from darner._records import RECORD_HEAD_BYTES
from darner.config import words
from darner.config.settings import NOTHING_CONFIGURED, QueueSettings
from darner.environment.environment import Environment
from darner.errors import (
    ConfigError,
    DarnerError,
    ItemTooLargeError,
    JournalError,
    StartError,
    UnavailableError,
)
from darner.jetstream.api import GIVE_UP_S
from darner.jetstream.conditions import SYNCED, check_sync, check_versions, unserved
from darner.jetstream.counting import ClusterTotals, look
from darner.jetstream.delivery import ACK, EXPIRES, FLAGS, Delivery, confirm
from darner.jetstream.family import Family
from darner.jetstream.line import Parking
from darner.jetstream.link import Link
from darner.jetstream.names import EVENTS, address, delay_subject, family_of, stream_of, token
from darner.jetstream.operation import Operation
from darner.jetstream.publishing import Message, Publish, Set
from darner.jetstream.queue import ClusterQueue, now_date_ms
from darner.jetstream.source import Fetch
from darner.jetstream.status import ClusterStatus
from darner.jetstream.upload import ClusterUpload
from darner.printable import shown
from darner.queues.cursor import MARK
from darner.queues.factory import SettingsSource
from darner.queues.fanout import parent_of
from darner.queues.pending import Pending
from darner.queues.queue import Queue, expires_ms
from darner.queues.status import STATUSES
from darner.queues.waiters import Source

log = structlog.get_logger()

# How many bytes of a message the headers may take.
HEADERS_BYTES = 2048
# Above how many seconds the cluster is not told when an item expires, and the longest delay that it is told:
# it does not take more than 292 years.
LONGEST_TTL_S = 100 * 365 * 86400
# How often, in seconds, it is looked which queues the families in use have, should an event have been lost.
RELOAD_S = 5.0
# How long, in seconds, a family that nothing is set to is kept in mind: longer than a set is on its way.
IDLE_S = 60.0


class ClusterStore:
    """The queues of a cluster, of which any number of darners serve each."""

    def __init__(
        self,
        link: Link,
        system: Link | None,
        environment: Environment,
        settings_source: SettingsSource,
        *,
        replicas: int,
        durability: str,
        ack_wait_ms: int,
        grace_ms: int,
    ) -> None:
        """`link` is to the cluster, `system` to its system account, which is asked whether nodes sync. The
        cluster gives an item that a darner holds to another one after `ack_wait_ms` without a word. A
        stricter status waits for `grace_ms`."""
        self.environment = environment
        # none is served at once
        self.sinks: dict[bytes, Queue] = {}
        self.sources: dict[bytes, Source] = {}
        self.status = ClusterStatus(grace_ms)
        self._link = link
        self._system = system
        self._settings_source = settings_source
        self._replicas = replicas
        self._durability = durability
        self._ack_wait_s = ack_wait_ms / 1000
        # those that exist, or that have something to do with this darner; and all that are in use
        self._known: dict[bytes, ClusterQueue] = {}
        self._in_use: WeakValueDictionary[bytes, ClusterQueue] = WeakValueDictionary()
        self._families: dict[bytes, Family] = {}
        self._reloading: set[Family] = set()
        self._parking = Parking(link)
        self.totals = ClusterTotals(self._known)
        self.out_of_service: dict[bytes, JournalError] = {}
        self.aliases: Mapping[bytes, tuple[bytes, ...]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._looking: Operation[None] | None = None
        # what no other darner has, and how many ids were made of it
        self._origin = uuid.uuid4().hex.encode()
        self._count = 0

    # Life

    async def open(self) -> None:
        """Connect, and find out which queues there are. Raises StartError if the cluster cannot be reached,
        or is not what it has to be."""
        await self._link.open()
        await check_versions(self._link)
        if self._system is not None:
            await self._system.open()
            await check_sync(self._system)
            await self._system.close()
        await self._link.subscribe(f"{EVENTS}.*", self._changed)
        self._link.on_reconnect = self._forget_families
        try:
            await look(self._link, self._known, self._queue, ())
        except UnavailableError as error:
            raise StartError(f"cannot use the cluster: {error}") from error

    async def close(self) -> None:
        """Give back what was delivered here, and disconnect."""
        for queue in list(self._in_use.values()):
            for delivery in list(queue.deliveries.values()):
                queue.give_back(delivery)
            queue.return_all()
        await self._link.close()

    def tick(self) -> None:
        """Do what time brings; to be called a few times a second."""
        self._enforce_status()
        now = asyncio.get_running_loop().time()
        for queue in list(self._in_use.values()):
            queue.tick()
        for name, family in list(self._families.items()):
            if now - family.used_at > IDLE_S and not family.has_line:
                del self._families[name]
            elif family.loaded_at is not None and now - family.loaded_at > RELOAD_S:
                family.loaded_at = now
                self._reload(family)
                if family.is_loose:
                    family.renew()
        if self._parking.is_due:
            self._run(self._parking.look())

    def _enforce_status(self) -> None:
        if self.status.enforce(now_date_ms()):
            log.warning("status in force", status=STATUSES[self.status.in_force])
            with contextlib.suppress(UnavailableError):
                self.status.refuse_waits()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, DarnerError):
            log.warning("the cluster is not as it should be, tried again later", reason=str(error))
        elif error is not None:
            log.error("internal error in the background", exc_info=error)

    # Queues

    def settings(self, name: bytes) -> QueueSettings:
        """Return the settings of a queue, whether it exists or not."""
        queue = self._in_use.get(name)
        if queue is not None:
            return queue.settings
        return self._settings_source(name.partition(MARK)[0], NOTHING_CONFIGURED)

    def _queue(self, name: bytes) -> ClusterQueue:
        """Return a queue, whether it exists or not."""
        queue = self._in_use.get(name)
        if queue is None:
            queue = self._in_use[name] = ClusterQueue(
                name,
                self._settings_source(name, NOTHING_CONFIGURED),
                self._link,
                self._parking,
                self._ack_wait_s,
                functools.partial(self._miss, name),
                functools.partial(self._made, name),
                self._give_up,
            )
        return queue

    def _family(self, name: bytes) -> Family:
        name = family_of(name)
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Family(
                name, self._link, self.settings, self._replicas, self._ack_wait_s
            )
        family.used_at = asyncio.get_running_loop().time()
        return family

    def _check(self, name: bytes, *, sync: bool = False) -> ClusterQueue:
        """Return the queue of a name. Raises UnavailableError if what is set for it cannot be kept."""
        queue = self._queue(name)
        parent = parent_of(name)
        parents = self.settings(parent) if parent else None
        for reason in unserved(queue.settings, parents, self._durability):
            raise UnavailableError(f"queue {shown(name)} is not served: {reason}")
        if sync and self._durability != SYNCED:
            raise UnavailableError(f'/sync is not served with durability = "{self._durability}"')
        return queue

    def _miss(self, name: bytes) -> None:
        """Take note that a queue seems to be gone: it is made again by the next set."""
        family = self._families.get(family_of(name))
        if family is not None:
            self._reload(family)

    def _reload(self, family: Family) -> None:
        """See which queues of a family are still there. Until then a set goes to all that were."""
        if family not in self._reloading:
            self._reloading.add(family)
            self._run(self._reloaded(family))

    async def _reloaded(self, family: Family) -> None:
        try:
            await family.load()
        finally:
            self._reloading.discard(family)

    def _forget_families(self) -> None:
        """Look again which queues there are: nothing was heard while there was no connection."""
        for family in self._families.values():
            family.forget()

    def _changed(self, message: Msg) -> None:
        """Take note that another darner has made or deleted a queue of a family."""
        origin, _, name = message.data.partition(b" ")
        if origin == self._origin:
            return
        self._parking.ask(stream_of(name))
        family = self._families.get(name)
        if family is not None:
            self._run(self._see_change(family))

    async def _see_change(self, family: Family) -> None:
        await family.load()
        for name in [name for name in self._known if family_of(name) == family.name]:
            if name not in family.members:
                self._forget(name)

    def _forget(self, name: bytes) -> None:
        """Take note that a queue is gone."""
        queue = self._known.pop(name, None)
        if queue is not None:
            self.totals.note_gone(queue)

    def _tell(self, name: bytes) -> None:
        """Tell all darners that the queues of a family have changed."""
        family = family_of(name)
        self._link.send(f"{EVENTS}.{token(family)}", b"%s %s" % (self._origin, family))

    async def _made(self, name: bytes) -> None:
        """Return when a queue exists."""
        family = self._family(name)
        if name in family.members and not family.has_line:
            return
        made: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ready(error: DarnerError | None, is_new: bool) -> None:
            if is_new:
                self._note_new(name)
            if made.done():
                return
            if error is None:
                made.set_result(None)
            else:
                made.set_exception(error)

        family.when_made(name, ready)
        await made

    def _note_new(self, name: bytes) -> None:
        queue = self._known[name] = self._queue(name)
        queue.line.note_there()
        self.totals.queue_creates += 1
        log.debug("queue created", queue=shown(name))
        self._tell(name)

    # In

    def push(
        self,
        name: bytes,
        record: bytes,
        flags: int,
        exptime: int,
        delay_ms: int = 0,
        dedup_id: bytes | None = None,
        *,
        sync: bool = False,
    ) -> Set:
        """Set an item on a queue, and on its children: see `Store.push`."""
        return self.set(name, record[RECORD_HEAD_BYTES:], flags, exptime, delay_ms, dedup_id, sync=sync)

    def set(
        self,
        name: bytes,
        data: bytes,
        flags: int,
        exptime: int,
        delay_ms: int,
        dedup_id: bytes | None,
        *,
        sync: bool,
    ) -> Set:
        """Set an item on a queue, and on its children. Raises UnavailableError or ItemTooLargeError if it
        cannot be; what the cluster says is told by the receipt."""
        self.status.check_sets()
        queue = self._check(name, sync=sync)
        self.check_size(queue, len(data))
        if delay_ms and queue.settings.max_items is not None and not queue.settings.discard_old_when_full:
            raise UnavailableError(
                f"queue {shown(name)} takes no delay: in a cluster one with max_items takes it only with "
                "discard_old_when_full"
            )
        receipt = Set()
        family = self._family(name)
        unique = token(dedup_id) if dedup_id is not None else self._new_id()
        headers = _headers(flags, exptime, delay_ms)
        deadline = asyncio.get_running_loop().time() + GIVE_UP_S

        def publish() -> None:
            targets = self._targets(family, name)
            if targets:
                messages = [self._message(target, headers, unique, delay_ms) for target in targets]
                self._publish(queue, messages, data, receipt, deadline, may_repeat=dedup_id is not None)
            else:  # fanout_only, and no child
                receipt.settle(None)

        if family.is_made(name):
            publish()
        else:
            self._publish_when_made(family, queue, publish, receipt)
        return receipt

    def _publish_when_made(
        self, family: Family, queue: ClusterQueue, publish: Callable[[], None], receipt: Set
    ) -> None:
        def ready(error: DarnerError | None, is_new: bool) -> None:
            if is_new:
                self._note_new(queue.name)
            if error is None:
                publish()
            else:
                receipt.settle(error)

        family.when_made(queue.name, ready)

    def _publish(
        self,
        queue: ClusterQueue,
        messages: Sequence[Message],
        data: bytes,
        receipt: Set,
        deadline: float,
        *,
        may_repeat: bool,
    ) -> None:
        def settle(error: DarnerError | None, id: int) -> None:
            # without an id of its own it repeats an earlier try of this very set
            is_repeated = sent.is_duplicate and may_repeat
            if error is None:
                queue.counts.duplicates += is_repeated
                queue.counts.total_items += not is_repeated
            receipt.settle(error, 0 if is_repeated else id)

        remake = functools.partial(self._remake, queue.name)
        sent = Publish(self._link, messages, data, settle, remake, deadline)
        sent.send()

    def _remake(self, name: bytes) -> None:
        """Make a queue again to which nothing can be published: it was deleted, or has no leader."""
        family = self._family(name)
        family.renew()
        if not family.has_line:  # each set that waits for the cluster sees this several times a second
            family.when_made(name, lambda _, is_new: self._note_new(name) if is_new else None)

    def _targets(self, family: Family, name: bytes) -> list[bytes]:
        """Return the queues that a set to `name` goes to."""
        if name != family.name:
            return [name]
        own = [] if self.settings(name).fanout_only else [name]
        return own + sorted(member for member in family.members if member != name)

    def _message(self, name: bytes, headers: dict[str, str], unique: str, delay_ms: int) -> Message:
        place = address(name)
        own = {**headers, "Nats-Msg-Id": f"{place.consumer}:{unique}"}
        if not delay_ms:
            return Message(place.subject, own)
        delay_ms = min(delay_ms, LONGEST_TTL_S * 1000)
        own["Nats-Schedule"] = f"@at {_date(now_date_ms() + delay_ms)}"
        own["Nats-Schedule-Target"] = place.subject
        if "Nats-TTL" in own:
            own["Nats-Schedule-TTL"] = own.pop("Nats-TTL")
        return Message(delay_subject(place.family, self._new_id()), own)

    def _new_id(self) -> str:
        """Return what no other set has."""
        self._count += 1
        return f"{self._origin.decode()}-{self._count:x}"

    def check_size(self, queue: ClusterQueue, size: int) -> None:
        """Raise ItemTooLargeError or UnavailableError if an item has too many bytes for its queue, or for the
        cluster."""
        most = queue.settings.max_item_size
        if most is not None and size > most:
            raise ItemTooLargeError(f"the item has {size} bytes, and may have {most}")
        most = self._link.max_payload - HEADERS_BYTES
        if size > most:
            raise UnavailableError(
                f"the item has {size} bytes, and may have {most}, the cluster's max_payload less its headers"
            )

    def upload(self, name: bytes, size: int, dedup_id: bytes | None) -> ClusterUpload:
        """Begin to set an item that comes in chunks, which are gathered in memory."""
        self.status.check_sets()
        self.check_size(self._check(name), size)

        def finish(data: bytes, flags: int, exptime: int, delay_ms: int, *, sync: bool) -> Set:
            return self.set(name, data, flags, exptime, delay_ms, dedup_id, sync=sync)

        return ClusterUpload(finish)

    async def _give_up(self, queue: ClusterQueue, delivery: Delivery, to: str | None) -> None:
        """Move an item that has come back too often to the queue `to`, or drop it."""
        if to is not None:
            data = await queue.data(delivery.item)
            item = delivery.item
            moved: asyncio.Future[DarnerError | None] = asyncio.get_running_loop().create_future()
            unique = f"{queue.address.stream}.{item.id}"
            receipt = self.set(to.encode(), data, item.flags, 0, 0, unique.encode(), sync=False)
            receipt.hold(_Moved(moved), 0)
            error = await moved
            if error is not None:
                raise UnavailableError(str(error))
        else:
            queue.counts.discarded += 1
        await confirm(self._link, delivery, ACK)

    # Out

    def source(
        self,
        name: bytes,
        *,
        takes: bool,
        waits: bool,  # noqa: ARG002 -- a queue that is not there is waited for as one that is empty
        has_disconnected: Callable[[], bool],
    ) -> Fetch | None:
        """Return what one fetch by `name` comes from: see `Store.source`."""
        self.status.check_gets()
        if MARK in name:
            raise UnavailableError(
                "cursors are not served by a cluster, where a queue has one place to read from: read a child"
            )
        queue = self._check(name)
        subscribes = takes and bool(parent_of(name))
        return Fetch(
            queue,
            takes=takes,
            has_disconnected=has_disconnected,
            prepare=functools.partial(self._made, name) if subscribes else None,
        )

    # Whole queues

    def steps_to_delete(self, name: bytes) -> Generator[Pending | None, None, bool]:
        """Delete a queue: see `Store.steps_to_delete`."""
        self.status.check_sets()
        if MARK in name:
            raise UnavailableError("cursors are not served by a cluster")
        operation = Operation(self._delete(name))
        yield operation
        return operation.result()

    async def _delete(self, name: bytes) -> bool:
        queue = self._queue(name)
        held = list(queue.deliveries.values())
        is_found = await self._family(name).delete(name)
        queue.forget_deliveries(held)
        self._forget(name)
        if is_found:
            self.totals.queue_deletes += 1
            self._tell(name)
        return is_found

    def steps_to_flush(self, name: bytes) -> Generator[Pending | None, None, None]:
        """Discard what waits in a queue, and what is reserved of it."""
        self.status.check_sets()
        operation = Operation(self._flush(name))
        yield operation
        operation.result()

    async def _flush(self, name: bytes) -> None:
        await self._family(name).flush(name)
        self._queue(name).counts.total_flushes += 1

    def flush_all(self, errors: list[JournalError]) -> Iterator[Pending | None]:
        """Flush every queue: see `Store.flush_all`."""
        looked = Operation(self._look(()))
        yield looked
        try:
            looked.result()
        except JournalError as error:
            errors.append(error)
            return
        for name in list(self._known):
            flushed = Operation(self._flush(name))
            yield flushed
            try:
                flushed.result()
            except JournalError as error:
                errors.append(error)

    def steps_to_flush_expired(self, name: bytes | None) -> Generator[Pending | None, None, int]:  # noqa: ARG002
        """Do nothing: the cluster drops items as they expire."""
        self.status.check_sets()
        yield None
        return 0

    @property
    def configuring(self) -> "ClusterStore":
        """What refuses settings that are made at run time."""
        return self

    def configure(self, name: bytes, arguments: Sequence[bytes]) -> Iterator[Pending | None]:
        """Raise ConfigError: darners keep nothing. What is wrong in itself is said as ever."""
        self.status.check_sets()
        words.check(self.aliases, name, words.changed({}, arguments))
        raise ConfigError(
            f"configure is not served by a cluster: set it for {shown(name)} in the file of each darner"
        )

    def set_status(self, level: int) -> None:
        """Change what clients of this darner may do, as long as it runs."""
        self.status.change(level, now_date_ms())
        self._enforce_status()

    def reconfigure(
        self,
        settings_source: SettingsSource,
        aliases: Mapping[bytes, tuple[bytes, ...]],
        changed: list[bytes],
    ) -> Iterator[None]:
        """Take other settings from now on: see `Store.reconfigure`."""
        if aliases:
            raise ConfigError("aliases are not served by a cluster: their queues have no stream in common")
        self._settings_source = settings_source
        for family in self._families.values():  # of their queues not all are in use
            family.renew()
        for name, queue in list(self._in_use.items()):
            settings = settings_source(name, NOTHING_CONFIGURED)
            if settings != queue.settings:
                queue.settings = settings
                changed.append(name)
            yield

    # Figures

    def steps_to_look(self, names: Sequence[bytes]) -> Iterator[Pending | None]:
        """Bring figures up to date; those who ask meanwhile share a look at all."""
        if names:
            looking = Operation(self._look(names))
        else:
            if self._looking is None or self._looking.is_done:
                self._looking = Operation(self._look(()))
            looking = self._looking
        if not looking.is_done:
            yield looking
        try:
            looking.result()
        except JournalError as error:
            log.warning("figures are those of an earlier look", reason=str(error))

    async def _look(self, names: Sequence[bytes]) -> None:
        for name in await look(self._link, self._known, self._queue, names):
            self._forget(name)

    @property
    def visible(self) -> Mapping[bytes, ClusterQueue]:
        """The queues that exist, and those that somebody waits for here."""
        return self._known | {name: queue for name, queue in self._in_use.items() if queue.line}

    def find_visible(self, name: bytes) -> ClusterQueue | None:
        """Return one of the `visible` queues; None if there is none of that name."""
        return self.visible.get(name)

    @property
    def queue_names(self) -> Sequence[bytes]:
        """The names of the queues that exist, as of the last look."""
        return list(self._known)

    def settings_in_force(self, name: bytes) -> QueueSettings | None:
        """Return the settings of a queue; None if there is no such queue."""
        queue = self._known.get(name)
        return None if queue is None else queue.settings

    def children(self, name: bytes) -> Sequence[bytes]:
        """Return the names of the children of a queue, as of the last look."""
        return sorted(child for child in self._known if parent_of(child) == name)

    @property
    def bytes_for_items(self) -> int:
        """How many bytes are free for items: the cluster does not say."""
        return 0

    @property
    def refusals(self) -> list[str]:
        """Why sets are refused now on any queue."""
        wrong = [f"the status is {self.status.name}"] if self.status.level else []
        if not self._link.is_connected:
            wrong.append("there is no connection to the cluster")
        return wrong

    def reset_stats(self) -> None:
        """Zero what is counted since the start."""
        self.totals.reset()
        for queue in self._in_use.values():
            queue.counts.clear()


class _Moved:
    """Who waits for an item to be in another queue."""

    def __init__(self, moved: "asyncio.Future[DarnerError | None]") -> None:
        self._moved = moved
        self._error: DarnerError | None = None

    def hold(self) -> None:
        """Do nothing: `release` is waited for."""

    def fail(self, slot: int, error: DarnerError) -> None:  # noqa: ARG002
        """Take note of why it is not."""
        self._error = error

    def release(self) -> None:
        """Go on."""
        self._moved.set_result(self._error)


def _headers(flags: int, exptime: int, delay_ms: int) -> dict[str, str]:
    """Return the headers of an item, of memcached's flags and expiry."""
    headers = {}
    if flags:
        headers[FLAGS] = str(flags)
    if exptime:
        now_ms = now_date_ms()
        ms = expires_ms(exptime, now_ms)
        headers[EXPIRES] = str(ms)
        # it is dropped by the second; until then a fetch looks at the time by itself
        left_s = max(1, -(-(ms - now_ms - delay_ms) // 1000))
        if left_s < LONGEST_TTL_S:
            headers["Nats-TTL"] = f"{left_s}s"
    return headers


def _date(ms: int) -> str:
    seconds, rest = divmod(ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"
