"""Items that move between a data directory and a cluster, and within one, as a shell moves them."""

import re
import shutil

import pytest
from nats_cluster import nats_cluster
from programs import program
from running import run_darner, running

pytest.importorskip("nats")
ITEMS = "".join(f"item {number}\n" for number in range(500))


@pytest.fixture(scope="module")
def in_cluster(tmp_path_factory):
    directory = tmp_path_factory.mktemp("in_cluster")
    with nats_cluster(directory, 1) as cluster:
        path = directory / "darner.toml"
        path.write_text(f'store = "{cluster.urls[0]}"\ndurability = "replicated"\nreplicas = 1\nport = 0\n')
        with program("-m", "darner", "--config", path) as started:
            started.wait_for("data in a cluster")
            port = re.search(r"event=listening host=\S+ port=(\d+)", started.output)[1]
            yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    with running(tmp_path_factory.mktemp("local") / "data") as server:
        yield f"127.0.0.1:{server.port}"


def darner(server, *words, status=0, **options):
    """Run a command against a server, and return what it has printed."""
    done = run_darner(*words, DARNER_URL=server, **options)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if not status else done.stderr


def test_a_queue_goes_to_a_cluster_and_back_by_files(local, in_cluster, tmp_path):
    darner(local, "put", "there", input=ITEMS)
    darner(local, "export", "there", tmp_path / "there.export", "--remove")
    assert darner(in_cluster, "import", tmp_path / "there.export", "there") == (
        f"imported 500 items, {len(ITEMS) - 500} bytes\n"
    )
    # somebody who does not know how far that came stores nothing twice
    shutil.copy(tmp_path / "there.export", tmp_path / "again.export")
    darner(in_cluster, "import", tmp_path / "again.export", "there")
    darner(in_cluster, "export", "there", tmp_path / "back.export", "--remove")
    darner(in_cluster, "get", "there", status=4)
    darner(local, "import", tmp_path / "back.export", "back")
    assert darner(local, "get", "--all", "back") == ITEMS
    darner(local, "get", "there", status=4)


def test_a_copy_of_a_queue_in_a_cluster_leaves_it_there(in_cluster, tmp_path):
    darner(in_cluster, "put", "stays", input=ITEMS)
    darner(in_cluster, "export", "stays", tmp_path / "stays.export")
    assert darner(in_cluster, "get", "--all", "stays") == ITEMS


def test_items_move_from_one_queue_of_a_cluster_to_another(in_cluster):
    darner(in_cluster, "put", "from", input=ITEMS)
    assert darner(in_cluster, "move", "from", "to") == f"moved 500 items, {len(ITEMS) - 500} bytes\n"
    darner(in_cluster, "get", "from", status=4)
    assert darner(in_cluster, "get", "--all", "to") == ITEMS


def test_a_backup_of_a_data_directory_says_that_there_is_none(in_cluster, tmp_path):
    said = darner(in_cluster, "backup", f"darner://{in_cluster}", tmp_path / "copy", status=1)
    assert len(said.splitlines()) == 1
    assert "keeps its queues in the cluster nats://127.0.0.1:" in said
    assert not (tmp_path / "copy").exists()
