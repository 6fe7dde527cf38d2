"""Messages of kombu, published and received."""

import contextlib


def publish(connection, queue, *bodies, **options):
    """Publish messages to a queue, which is declared."""
    producer = connection.Producer(serializer="json")
    for body in bodies:
        producer.publish(body, routing_key=queue.name, declare=[queue], **options)


def drained(connection, *queues, ack=True, **options):
    """Return the messages that come within a moment."""
    found = []

    def receive(body, message):
        found.append(message)
        if ack:
            message.ack()

    consumer = connection.Consumer(queues, callbacks=[receive], accept=["json"], **options)
    with consumer, contextlib.suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=0.3)
    return found
