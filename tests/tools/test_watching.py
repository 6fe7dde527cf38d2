"""A server that is asked again and again."""

from running import configured

from darner.client import Client
from darner.client.errors import ConnectionFailedError, ConnectionLostError
from darner.tools.watching import Watch


def test_a_server_is_seen_with_rates_when_it_is_down_and_when_it_is_back(server):
    with Client(f"127.0.0.1:{server.port}", timeout=1.0) as client:
        watch = Watch("it", client)
        client.put("work", b"x")
        watch.look()
        assert watch.overview.queues["work"].rate_in is None
        client.put_many("work", [b"x"] * 50)
        watch.look()
        assert watch.overview.queues["work"].rate_in > 0
        server.kill()
        watch.look()
        assert isinstance(watch.failure, ConnectionFailedError | ConnectionLostError)
        assert watch.overview.error == str(watch.failure)
        assert watch.overview.queues["work"].stats.items == 51
        server.options = ("--port", str(server.port))
        server.start()
        watch.look()
        assert (watch.failure, watch.overview.error) == (None, "")
        assert watch.overview.queues["work"].rate_in is None


def test_queues_are_seen_though_stats_does_not_list_them(tmp_path):
    with configured(tmp_path, 'queue_stats = "asked"\n') as server:
        watch = Watch("it", Client(f"127.0.0.1:{server.port}"))
        server.connect().set(b"work", b"x")
        watch.look()
        assert watch.overview.queues["work"].stats.items == 1
