"""Data ranks of meshes: four real processes with gloo, of which two each must get the same batches."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.helpers import scripts

from bionemo.webdatamodule._engine import peers
from bionemo.webdatamodule._engine.peers import Peers, fingerprint
from bionemo.webdatamodule._engine.ranks import Topology, topology_of
from bionemo.webdatamodule.errors import ConfigError, PeerMismatchError

pytestmark = pytest.mark.timeout(600)

SCRIPT = Path(__file__).parents[1] / "helpers" / "mesh.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory, shards):
    """Return what each of the four processes got, and the lines of the receipt."""
    directory = tmp_path_factory.mktemp("mesh")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = scripts.run(SCRIPT, json.dumps([shards, str(directory), port]))
    assert 0 == done.returncode, done.stderr[-3000:]
    processes = [json.loads((directory / f"{process}.json").read_text()) for process in range(4)]
    return SimpleNamespace(processes=processes, receipt=json.loads((directory / "receipt.jsonl").read_text()))


def batches(found, name, ranks):
    """Return the global batches of a scenario, from the processes of the data ranks in their order."""
    shares = zip(*(found.processes[process][name] for process in ranks), strict=True)
    return [sum(parts, []) for parts in shares]


def test_tensor_parallel_peers_get_the_same_batches(found, make_data):
    """Under FSDP2 with tensor parallelism, and with a mesh of one's own, two data ranks share the batches of one."""
    data = make_data(size=8, splits=("train",))
    data.setup("fit")
    expected = [list(keys) for keys, _ in data.train_dataloader()]

    for name in ("fsdp2", "mesh"):
        assert found.processes[0][name] == found.processes[1][name]
        assert found.processes[2][name] == found.processes[3][name]
        assert expected == batches(found, name, (0, 2))
    assert expected == batches(found, "pair", (0, 1)) == batches(found, "pair", (2, 3))
    assert expected == batches(found, "hybrid", range(4)) == batches(found, "alone", range(4))


def test_the_receipt_counts_each_data_rank_once(found):
    """Peers that got the same samples do not count them again."""
    assert (37, True) == (found.receipt["samples"], found.receipt["each_once"])
    assert "missing_ranks" not in found.receipt


def test_peers_with_other_samples_are_named(found):
    """A process with another seed than its peer ends all of them with its number and the cause."""
    expected = (
        "processes 2 and 3 share the data rank 1 and read different samples; give all processes the same data, seed, "
        "sizes and checkpoint"
    )
    assert [expected] * 4 == [process["other seed"] for process in found.processes]


def test_peers_with_other_contents_are_named(found):
    """Stages whose random numbers differ between peers are noticed at the first batch."""
    expected = (
        "processes 0 and 1 share the data rank 0 and made different batches of the same samples; draw random numbers "
        "in stages from bionemo.webdatamodule.context"
    )
    assert [expected] * 4 == [process["own random numbers"] for process in found.processes]


def test_data_ranks_that_do_not_fit_together_are_named(found):
    """Three processes on one data rank and one on the other are refused."""
    expected = (
        "the data ranks of the processes do not fit together (process 0: 0 of 2, process 1: 0 of 2, process 2: 0 of 2, "
        "process 3: 1 of 2); each data rank must be given to equally many processes: look at data_ranks, or the "
        "strategy's mesh"
    )
    assert [expected] * 4 == [process["no ranks"] for process in found.processes]


def mesh(names, *, coordinates=(0, 0), shape=(2, 2)):
    """Return what looks like a mesh."""
    return SimpleNamespace(
        mesh_dim_names=names, get_coordinate=lambda: coordinates and list(coordinates), size=lambda dim: shape[dim]
    )


@pytest.mark.parametrize(
    ("names", "rank", "ranks"),
    [
        (("dp", "tp"), 1, 2),
        (("pp", "fsdp"), 0, 2),
        (("dp_replicate", "dp_shard"), 2, 4),
        (("replicate", "shard"), 2, 4),
        (("data_parallel", "tensor_parallel"), 1, 2),
        (("data_modality", "cp"), 1, 2),
    ],
)
def test_dimensions_of_a_mesh_are_known_by_their_names(names, rank, ranks):
    """Ranks are counted over the data-parallel dimensions, in the order of the mesh."""
    assert Topology(rank=rank, world_size=ranks) == topology_of(None, mesh(names, coordinates=(1, 0)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (mesh(("tp", "pp")), r"no dimension of the mesh \(tp, pp\) is called data, .* give data_ranks=lambda"),
        (mesh(("dp_cp", "tp")), "no dimension of the mesh"),
        (mesh(None), "without names"),
        (mesh(("dp", "tp"), coordinates=None), "this process is not in the mesh"),
        (lambda: (2, 2), r"gives \(2, 2\); give a DeviceMesh, or a function"),
        (lambda: None, "gives None; give a DeviceMesh, or a function"),
        (3, "data_ranks is 3 and gives 3"),
    ],
)
def test_what_gives_no_data_rank_is_refused(given, message):
    """The message says what was given, and what can be."""
    with pytest.raises(ConfigError, match=message):
        topology_of(None, given)


def test_a_process_without_a_first_batch_is_logged(monkeypatch, caplog):
    """Where another process never takes a batch, this one goes on and says so."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(peers, "WAIT", 0.05)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    Peers("train", Topology()).check([1])

    assert "the first batch was not compared with those of ranks 1" in caplog.text


def test_fingerprints_are_of_contents():
    """Equal batches have one fingerprint; types, shapes, values and order tell others apart."""
    batch = {"x": torch.ones(2, 3), "y": ["a", b"b", 1, 2.0, None], "z": torch.ones(2, dtype=torch.bfloat16)}
    others = [
        {**batch, "x": torch.ones(3, 2)},
        {**batch, "x": torch.ones(2, 3, dtype=torch.float64)},
        {**batch, "y": ["a", b"b", 1, 2.5, None]},
        {**batch, "z": torch.zeros(2, dtype=torch.bfloat16)},
        [batch],
    ]
    assert fingerprint(batch) == fingerprint({**batch, "x": torch.ones(3, 2).T})
    assert len({fingerprint(one) for one in [batch, *others]}) == 6
    assert issubclass(PeerMismatchError, ConfigError)
