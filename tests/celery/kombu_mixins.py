"""kombu's tests of a transport, each against $BROKER_URL, for a pytest that has kombu's `t/` on its path.

Redis has lower numbers first in its priorities, all others higher ones.
"""

import inspect
import os

import kombu
import pytest
from t.integration import common

URL = os.environ["BROKER_URL"]
SCHEME = URL.partition(":")[0]
NOBODY = f"{SCHEME}://127.0.0.1:1"


@pytest.fixture
def connection():
    return kombu.Connection(URL)


@pytest.fixture
def invalid_connection():
    return kombu.Connection(NOBODY)


@pytest.fixture
def failover_connection():
    return kombu.Connection(f"{NOBODY};{URL}")


for name, mixin in vars(common).items():
    if inspect.isclass(mixin) and mixin.__module__ == common.__name__:
        order = {"PRIORITY_ORDER": os.environ["PRIORITY_ORDER"]}
        globals()[f"Test{name}"] = type(f"Test{name}", (mixin,), order)
