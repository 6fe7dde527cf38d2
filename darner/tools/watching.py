"""A server that is asked again and again how it is."""

import time

from darner.client.client import Client
from darner.client.errors import ClientError
from darner.printable import printable
from darner.tools.overview import Overview, Sample


class Watch:
    """One server. One thread at a time may use it, and others may read `overview` meanwhile."""

    def __init__(self, server: str, client: Client) -> None:
        """`server` is its name, and `client` a client of it alone."""
        self.overview = Overview(server, error="it was not asked yet")
        # why it did not answer the last time, if it did not
        self.failure: ClientError | None = None
        self._client = client
        self._sample: Sample | None = None

    def look(self) -> None:
        """Ask the server how it is; rates are those since the last time that it answered.

        If it does not answer, or refuses to, `failure` and the `error` of the overview say so, and the rest
        is as it was.
        """
        was = self.overview
        try:
            server, queues = self._client.figures()
        except ClientError as error:
            self.failure = error
            self.overview = Overview(was.server, printable(str(error)), was.stats, was.queues)
            return
        sample = Sample(time.monotonic(), server, queues)
        self.failure = None
        self.overview = Overview.of(was.server, sample, self._sample)
        self._sample = sample
