"""What a worker's thread takes from a queue, and how each message ends."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, cast

from dramatiq import Consumer, DecodeError, Message, MessageProxy
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, ConnectionFailed

from darner.client import Client, Reservation
from darner.client.errors import ClientError, ConnectionFailedError, ConnectionLostError

log = logging.getLogger(__name__)

# The pause before a message is tried again that could be neither retried nor put to the dead letters.
PAUSE_S = 1.0


class DarnerMessage(MessageProxy):
    """A message that a worker has, and the reservation that it stands for."""

    def __init__(self, message: Message[Any], reservation: Reservation) -> None:
        super().__init__(message)
        self.reservation = reservation
        # whether it could not be put on its queue once more, for a retry
        self.is_unsent = False


class DarnerConsumer(Consumer):
    """The messages of one queue, at most `prefetch` in hand.

    One thread takes them; any thread may end one, over the connection that holds it. So no end waits for
    another message to come.
    """

    def __init__(
        self,
        client: Client,
        queues: Sequence[str],
        dead_letters: str,
        prefetch: int,
        timeout: int,
        in_hand: MutableMapping[str, DarnerMessage],
    ) -> None:
        """`queues` are those to take from, the most urgent first; `timeout` is in ms."""
        self._client = client
        self._queues = queues
        self._dead_letters = dead_letters
        self._prefetch = prefetch
        self._timeout_s = timeout / 1000
        self._in_hand = in_hand
        self._ready: deque[Reservation] = deque()
        self._held: set[Reservation] = set()
        self._changed = threading.Condition()

    def __next__(self) -> DarnerMessage | None:
        """Return the next message; None if none has come in time, or too many are in hand.

        Raises a BrokerConnectionError if the server cannot be reached, or does not serve.
        """
        if not self._ready:
            self._fetch()
        if not self._ready:
            return None
        reservation = self._ready.popleft()
        try:
            message = DarnerMessage(Message.decode(reservation.data), reservation)
        except DecodeError:
            log.exception("A message cannot be decoded, and goes to %s.", self._dead_letters)
            self._bury(reservation, None)
            return None
        self._in_hand[message.message_id] = message
        return message

    def ack(self, message: MessageProxy) -> None:
        """Remove a message; or put it back, to be processed again, if its retry could not be enqueued."""
        ours = cast("DarnerMessage", message)
        if ours.is_unsent:
            log.warning("Message %s could not be retried, and goes back.", ours.message_id)
            self._end(ours.reservation, lambda: ours.reservation.retry(PAUSE_S))
        else:
            self._end(ours.reservation, ours.reservation.close)

    def nack(self, message: MessageProxy) -> None:
        """Move a message to the dead letters."""
        reservation = cast("DarnerMessage", message).reservation
        # by which it is stored once, though it may have to be sent again
        self._bury(reservation, f"{message.message_id}-{reservation.id}")

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Put messages back at the head of their queue, and behind them what was not handed out."""
        # each goes to the head, so the first is put back last
        handed_out = [cast("DarnerMessage", each).reservation for each in messages]
        for reservation in reversed([*handed_out, *self._ready]):
            self._end(reservation, reservation.abort)
        self._ready.clear()

    def close(self) -> None:
        """Put back what was not handed out."""
        self.requeue(())

    def _fetch(self) -> None:
        """Reserve as many messages as are there and may be; wait for the first, if there is room for it."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._held) < self._prefetch, self._timeout_s):
                return
            room = self._prefetch - len(self._held)
        try:
            # not left as a context: each message ends by itself
            found = self._client.reserve_many(self._queues, room, self._timeout_s).__enter__()
        except ClientError as error:
            raise connection_error(error) or ConnectionClosed(str(error)) from None
        with self._changed:
            self._held.update(found)
        self._ready.extend(found)

    def _bury(self, reservation: Reservation, id: str | None) -> None:
        try:
            self._client.put(self._dead_letters, reservation.data, id=id)
        except ClientError as error:
            log.warning("A message cannot be put on %s, and goes back: %s", self._dead_letters, error)
            self._end(reservation, lambda: reservation.retry(PAUSE_S))
        else:
            self._end(reservation, reservation.close)

    def _end(self, reservation: Reservation, end: Callable[[], None]) -> None:
        try:
            end()
        except ClientError as error:
            # it was held too long, or the connection was lost, or somebody deleted the queue
            log.warning("A message went back, and will be processed again: %s", error)
        finally:
            with self._changed:
                self._held.discard(reservation)
                self._changed.notify()


def connection_error(error: ClientError) -> BrokerConnectionError | None:
    """Return Dramatiq's error for that of a connection; None if it is another one."""
    if isinstance(error, ConnectionFailedError):
        return ConnectionFailed(str(error))
    if isinstance(error, ConnectionLostError):
        return ConnectionClosed(str(error))
    return None
