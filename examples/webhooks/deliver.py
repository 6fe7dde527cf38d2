"""The work behind the web app: deliver one webhook.

    python -m darner.work examples.webhooks.deliver:deliver --queue webhooks --codec json

`darner.work` calls `deliver` with each item. If it returns, the item is done and leaves the queue. If it
raises, the item comes back after a pause that grows from try to try, and after `max_attempts` it moves to
the `dead_letter_queue`: see examples/darner.toml. If the worker is killed in the middle, the next one
gets the item at once. So a webhook may arrive twice, and carries its id for the receiver to tell.
"""

import json
import urllib.request

from darner.work import Item

TIMEOUT_S = 10.0


def deliver(item: Item) -> None:
    """Send a webhook; OSError if the receiver is not there, too slow, or answers anything but a success."""
    hook = item.value
    request = urllib.request.Request(
        hook["url"],
        data=json.dumps(hook["body"]).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": hook["id"]},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):
        pass
