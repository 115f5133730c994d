"""The bench command: it measures every part and worker count of any data set, and draws the right conclusions."""

import io
import json
import pickle
import tarfile

import pytest
import torch

from bionemo.webdatamodule._cli.bench.measure import PARTS, Rate, verdict
from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._engine.writing.adopt import adopt

FAST = ["--seconds", "0.02", "--batch-size", "4"]


@pytest.fixture
def shards(tmp_path):
    """Return a function that writes two shards of samples with these fields."""

    def write(fields, samples=10, prefix="wdshards"):
        for shard in range(2):
            with tarfile.open(tmp_path / f"{prefix}-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in range(samples // 2):
                    for suffix, value in fields(shard * samples // 2 + sample).items():
                        member = tarfile.TarInfo(f"{shard}{sample:04d}.{suffix}")
                        member.size = len(value)
                        tar.addfile(member, io.BytesIO(value))
        return str(tmp_path)

    return write


def tensors(number):
    """Return a tensor and a label."""
    return {"x.pyd": pickle.dumps(torch.full((100,), float(number))), "y.cls": str(number).encode()}


def ragged(number):
    """Return a tensor of a length of its own."""
    return {"x.pyd": pickle.dumps(torch.ones(number + 1))}


def twice(samples):
    """Do something with samples."""
    for (sample,) in samples:
        yield sample * 2


def report(capsys, *arguments):
    """Run the command and return what it prints as JSON."""
    assert 0 == main(["bench", "--json", *arguments, *FAST])
    return json.loads(capsys.readouterr().out)


def test_every_part_and_worker_count_is_measured(shards, capsys):
    """The report has a figure for each, consistent in its units, and the machine-readable output nothing else."""
    directory = shards(tensors)
    adopt(directory, "wdshards")
    found = report(capsys, directory, "--workers", "0", "1")
    expected = [part for part in PARTS if part != "stages"]
    assert (10, expected, ["0", "1"]) == (
        found["samples"],
        [part["name"] for part in found["parts"]],
        [rate["name"] for rate in found["workers"]],
    )
    size = found["bytes_per_sample"]  # pickles of torch hold addresses, whose digits differ
    assert sum(map(len, tensors(0).values())) == pytest.approx(size, abs=8)
    for rate in found["parts"] + found["workers"]:
        assert 1e6 == pytest.approx(rate["samples"] * rate["microseconds"])
        assert rate["samples"] * size / 1e6 == pytest.approx(rate["megabytes"])
    assert [True, True] == [rate["start"] > 0 for rate in found["workers"]]
    assert max(rate["samples"] for rate in found["workers"]) == found["verdict"]["samples"]
    assert "you wait for" in found["verdict"]["line"]


def test_one_field_and_a_stage_can_be_chosen(shards, capsys):
    """Stages are registered names, with options if need be, or module:function, and are measured as a part."""
    directory = shards(tensors)
    json_stage = json.dumps({"name": "map", "options": {"function": "operator.neg"}})
    for stages in (
        ["--stage", "untuple"],
        ["--stage", f"{__name__}:twice"],
        ["--stage", "shuffle:size=4,initial=2"],
        ["--stage", "untuple", "--stage", "map:function=operator.neg"],
        ["--stage", "untuple", "--stage", json_stage],
    ):
        found = report(capsys, directory, "--suffix", "x.pyd", "--workers", "0", *stages)
        assert "stages" in [part["name"] for part in found["parts"]]
        assert len(tensors(0)["x.pyd"]) == pytest.approx(found["bytes_per_sample"], abs=8)


def test_samples_that_fit_into_no_tensor_are_measured_as_lists(shards, capsys):
    """Batching is left out where samples have shapes of their own."""
    found = report(capsys, shards(ragged), "--workers", "0")
    assert ["read", "decode", "transport"] == [part["name"] for part in found["parts"]]
    assert 0 < found["workers"][0]["samples"]


def test_people_get_a_table(shards, capsys):
    """Parts, worker counts and the verdict, one line at the end, are printed for reading."""
    assert 0 == main(["bench", shards(tensors), "--workers", "0", "--training", "0.5", *FAST])
    lines = capsys.readouterr().out.splitlines()
    assert "wdshards: 10 samples of " in lines[0]
    assert ["read", "decode", "batch", "direct", "transport"] == [line.split()[0] for line in lines[3:8]]
    assert lines[10].startswith("0 workers")
    assert lines[-1].startswith("verdict: you wait for training, since the data come at ")
    assert lines[-1].endswith("samples/s; keep num_workers=0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prefix", "other"], "other"),
        (["--stage", "no_such_stage"], "no_such_stage"),
        (["--stage", "json:no_such_function"], "--stage json:no_such_function cannot be imported"),
        (["--stage", "shuffle:size=4,4"], "size is a whole number, not '4,4'"),
        (["--stage", "shuffle:size=0"], "size"),
        (["--stage", "{shuffle}"], "--stage {shuffle} is not JSON"),
        (["--batch-size", "0"], "argument --batch-size: 0 is less than 1"),
        (["--workers", "-1"], "argument --workers: -1 is less than 0"),
        (["--training", "-1"], "argument --training: -1 is not above 0"),
        (["--suffix", "z.pyd"], "z.pyd"),
    ],
)
def test_wrong_arguments_are_one_line(shards, capsys, arguments, message):
    """No traceback, and exit code 2."""
    assert 2 == main(["bench", shards(tensors), *FAST, *arguments])
    captured = capsys.readouterr()
    assert message in captured.err
    assert 1 == len(captured.err.splitlines())


def test_a_field_that_samples_lack_is_told_with_its_place(shards, capsys):
    """Shard, key and suffix are named, and the way out."""
    directory = shards(lambda number: {"x.pyd": pickle.dumps(number), **({"y.cls": b"1"} if number != 7 else {})})
    assert 2 == main(["bench", directory, "--workers", "0", *FAST])
    error = capsys.readouterr().err
    assert "has only the suffixes x.pyd; choose fields that all samples have, with --suffix" in error
    assert f"shard={directory}/wdshards-000001.tar, key=10002, suffix=y.cls" in error
    assert 0 == main(["bench", directory, "--workers", "0", "--suffix", "x.pyd", *FAST])


def rates(**costs):
    """Return rates of parts from microseconds a sample, for samples of 1 kB."""
    return [
        Rate(name=name, samples=1e6 / cost, megabytes=1e3 / cost, microseconds=cost) for name, cost in costs.items()
    ]


@pytest.mark.parametrize(
    ("parts", "workers", "cpus", "expected"),
    [
        ({"read": 50, "decode": 60, "direct": 52}, {"0": 10}, 1, ("store", "dirs_tars_wds, to a copy")),
        ({"read": 5, "check": 20, "decode": 9, "direct": 7}, {"0": 10}, 8, ("store", 'check, to "never"')),
        ({"read": 50, "decode": 60, "direct": 52}, {"0": 10}, 8, ("store", "num_workers in kwargs_wld, to 2")),
        ({"read": 1, "decode": 90, "direct": 50}, {"0": 10}, 1, ("decoding", "suffix_keys_wds")),
        ({"read": 1, "decode": 90}, {"0": 10, "2": 5}, 8, ("decoding", "num_workers in kwargs_wld, to 4")),
        ({"read": 1, "decode": 90}, {"0": 5, "2": 10}, 8, ("decoding", "suffix_keys_wds")),
        ({"read": 1, "decode": 5, "stages": 90, "direct": 3}, {"0": 9}, 1, ("stages", "pipeline_wds")),
        ({"read": 1, "decode": 5, "stages": 90}, {"0": 9, "4": 3}, 4, ("stages", "pipeline_wds")),
        ({"read": 1, "decode": 5, "stages": 20}, {"0": 9, "4": 3}, 4, ("transport", "global_batch_size")),
    ],
)
def test_verdict_names_what_a_run_waits_for_and_one_setting(parts, workers, cpus, expected):
    """Work in workers is shared by them; more of them are advised where there are processors that they may use."""
    found = verdict(rates(transport=10, batch=1, **parts), rates(**workers), cpus=cpus)
    assert expected[0] == found.waits_for
    assert found.setting.startswith(expected[1])
    assert f"you wait for {expected[0]}, {found.share:.0%} of a sample's time; change {expected[1]}" in str(found)


@pytest.mark.parametrize(("training", "expected"), [(1e5, "training"), (1e5 + 1, "decoding"), (None, "decoding")])
def test_verdict_is_training_where_the_model_takes_less_than_comes(training, expected):
    """The model's own rate decides, where it is known."""
    found = verdict(rates(read=1, decode=9, batch=1, direct=8), rates(**{"0": 10}), cpus=1, training=training)
    assert expected == found.waits_for


LOADER = """
from dataclasses import dataclass
from bionemo.webdatamodule import Loader, hookimpl

@dataclass(frozen=True, kw_only=True)
class Workers:
    num_workers: int = 0
    keeps_workers = False
    in_order = True

    def transported(self, value):
        return value

    def __call__(self, dataset):
        from torch.utils.data import DataLoader
        return DataLoader(dataset, batch_size=None, num_workers=self.num_workers)

@dataclass(frozen=True, kw_only=True)
class Plain:
    note: str

    def __call__(self, dataset):
        with open(self.note, "a") as file:
            file.write("made\\n")
        return dataset

@hookimpl
def webdatamodule_loaders():
    yield Loader(name="acme-plain", summary="no workers", factory=Plain)
    yield Loader(name="acme-workers", summary="as many workers as its option says", factory=Workers)
"""


NOTES = [
    "the loader 'acme-plain' has no option num_workers: it is measured as it is, with 0 workers",
    "the loader 'acme-plain' has no transported(): its transport is not measured",
]


def test_another_loader_can_be_measured(install, shards, capsys, tmp_path):
    """`--loader NAME:K=V` measures a plugin's loader once where no option sets its workers, and says so."""
    install("acme-loader", LOADER)
    found = report(capsys, shards(tensors), "--workers", "0", "2", f"--loader=acme-plain:note={tmp_path}/note")

    assert ["0"] == [rate["name"] for rate in found["workers"]]
    assert ["read", "decode", "batch", "direct"] == [rate["name"] for rate in found["parts"]]
    assert NOTES == found["notes"]
    assert "num_workers" not in found["verdict"]["setting"]
    assert "made" in (tmp_path / "note").read_text()


def test_people_read_what_another_loader_does_not_have(install, shards, capsys, tmp_path):
    """What is left out is said in lines of their own, and the verdict is still the last one."""
    install("acme-loader", LOADER)
    arguments = [f"--loader=acme-plain:note={tmp_path}/note", "--training", "0.5"]
    assert 0 == main(["bench", shards(tensors), *arguments, *FAST])
    lines = capsys.readouterr().out.splitlines()

    assert NOTES == [line for line in lines if line.startswith("the loader")]
    assert ["0 workers"] == [line[:9] for line in lines if " workers " in line[:12]]
    assert lines[-1].endswith("samples/s; keep the loader as it is")


def test_a_loader_that_offers_everything_is_measured_as_the_default(install, shards, capsys):
    """A plugin's loader with the option for workers and a way to measure its transport misses no figure."""
    install("acme-loader", LOADER)
    found = report(capsys, shards(tensors), "--workers", "0", "1", "--loader=acme-workers")

    assert ["0", "1"] == [rate["name"] for rate in found["workers"]]
    assert "transport" in [rate["name"] for rate in found["parts"]]
    assert [] == found["notes"]


def test_workers_are_not_advised_where_the_loader_has_no_option_for_them():
    """The setting of the verdict is one that the loader has."""
    parts, pipelines = rates(read=1, decode=90, batch=1, direct=50), rates(**{"0": 10})

    found = verdict(parts, pipelines, cpus=8, takes_workers=False)

    assert found.waits_for == "decoding"
    assert found.setting.startswith("suffix_keys_wds")
