"""Receipts: what runs delivered, whatever their ranks and interruptions."""

import json
import logging
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.helpers import scripts

from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._cli.receipt import command
from bionemo.webdatamodule._engine.loading import receipts
from bionemo.webdatamodule._engine.ranks import Topology
from bionemo.webdatamodule._engine.sampling.tally import Tally, hash_of_all
from bionemo.webdatamodule.errors import ConfigError

pytestmark = pytest.mark.timeout(600)

SCRIPT = Path(__file__).parents[1] / "helpers" / "receipts.py"


def damage(directory, member):
    """Change the last byte of a field."""
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            found = {one.name: one.offset_data + one.size - 1 for one in tar}
        if member in found:
            data = bytearray(path.read_bytes())
            data[found[member]] ^= 1
            path.write_bytes(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory, shards):
    """Return the directory of the receipts of all runs; one training sample is damaged."""
    directory = tmp_path_factory.mktemp("receipts")
    for split in ("train", "val"):
        shutil.copytree(f"{shards}{split}", directory / split)
    damage(directory / "train", "train05.x.pyd")
    done = scripts.run(SCRIPT, json.dumps([f"{directory}/", str(directory)]))
    assert 0 == done.returncode, done.stderr[-3000:]
    return directory


def test_all_ranks_leave_one_receipt(written):
    """Runs on 1, 2 and 4 ranks write the same lines: all samples but the damaged one, which is named."""
    one, two, four = ((written / f"ranks{ranks}.jsonl").read_text() for ranks in (1, 2, 4))
    lines = [json.loads(line) for line in one.splitlines()]

    assert one == two == four
    assert [("val", 0), ("train", 0), ("val", 1), ("train", 1)] == [(line["split"], line["epoch"]) for line in lines]
    assert [11, 36, 11, 36] == [line["samples"] for line in lines]
    assert [True, False, True, False] == [line["each_once"] for line in lines]
    assert [{}, {"corrupt-shard": 1}] == [line["skipped"] for line in lines[:2]]
    assert [[], ["train05"]] == [line["skipped_keys"] for line in lines[:2]]
    assert f"{hash_of_all(11):016x}" == lines[0]["hash"]


def test_a_run_that_was_resumed_leaves_the_same_receipt(written, capsys):
    """Stopped on 4 ranks and again on 2, a run that ends on one rank has the receipt of an undisturbed one."""
    files = [str(written / f"{name}.jsonl") for name in ("ranks1", "resumed")]

    assert 0 == main(["receipt", *files])
    assert "same: 4 epochs, 94 samples\n" == capsys.readouterr().out
    assert not any("since" in line or "missing_ranks" in line for line in Path(files[1]).read_text().splitlines())


def test_the_command_says_what_differs(written, tmp_path, capsys):
    """Other samples and missing epochs are listed, and the exit code is 1."""
    lines = (written / "ranks1.jsonl").read_text().splitlines()
    other = json.dumps({**json.loads(lines[1]), "samples": 35})
    (tmp_path / "other.jsonl").write_text(f"{lines[0]}\n{other}\n")

    assert 1 == main(["receipt", str(written / "ranks1.jsonl"), str(tmp_path / "other.jsonl")])
    assert (
        "3 of 4 epochs differ\n"
        "  train, epoch 0: samples 36 in A, 35 in B\n"
        "  train, epoch 1: only in A\n"
        "  val, epoch 1: only in A\n"
    ) == capsys.readouterr().out


def test_later_lines_replace_earlier_ones(tmp_path):
    """A run that began again at an epoch replaces what the file says of it and of later ones."""
    path = tmp_path / "r.jsonl"
    path.write_text(
        "".join(
            json.dumps({"split": "train", "epoch": n, "samples": s}) + "\n" for n, s in [(0, 5), (1, 5), (2, 5), (1, 4)]
        )
    )

    assert [5, 4] == [one["samples"] for one in command.read(str(path)).values()]


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n"])
def test_other_files_are_refused(tmp_path, text, capsys):
    """A file without receipts is an error of the command."""
    (tmp_path / "r.jsonl").write_text(text)

    assert 2 == main(["receipt", str(tmp_path / "r.jsonl"), str(tmp_path / "r.jsonl")])
    assert "holds no receipt" in capsys.readouterr().err


def test_an_epoch_is_logged(make_data, make_trainer, recorder, caplog):
    """Without a file, the log has a line for each epoch and each validation."""
    caplog.set_level(logging.INFO, "bionemo.webdatamodule")
    make_trainer(max_epochs=1).fit(recorder(), datamodule=make_data())

    assert [
        f"receipt of val, epoch 0: 11 samples delivered, each sample of the data once; hash {hash_of_all(11):016x}",
        f"receipt of train, epoch 0: 37 samples delivered, each sample of the data once; hash {hash_of_all(37):016x}",
    ] == [record.message for record in caplog.records if record.message.startswith("receipt")]


def test_only_steps_that_ran_count(make_data, make_trainer, recorder, tmp_path):
    """An epoch that ends early counts what was trained on, and no batch that was fetched ahead."""
    make_trainer(max_epochs=1, limit_train_batches=3).fit(
        recorder(), datamodule=make_data(receipt=tmp_path / "r.jsonl")
    )

    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [("val", 11), ("train", 12)] == [(line["split"], line["samples"]) for line in lines]


def test_evaluation_leaves_receipts(make_data, make_trainer, recorder, tmp_path):
    """Validation, test and prediction write a line each, and a second pass replaces the first."""
    data = make_data(splits=("val", "test"), receipt=tmp_path / "r.jsonl")
    trainer, model = make_trainer(), recorder()
    trainer.validate(model, datamodule=data, verbose=False)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data)

    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [("val", 11), ("test", 13), ("test", 13)] == [(line["split"], line["samples"]) for line in lines]
    assert [11, 13] == [one["samples"] for one in command.read(str(tmp_path / "r.jsonl")).values()]


def test_a_checkpoint_without_a_receipt_is_said(make_data, make_trainer, recorder, tmp_path, caplog):
    """Going on from a checkpoint of an older version, the receipt says where it begins."""
    trainer = make_trainer(max_steps=3)
    trainer.fit(recorder(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del checkpoint["callbacks"]["ReceiptCallback"]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    make_trainer(max_epochs=1).fit(
        recorder(), datamodule=make_data(receipt=tmp_path / "r.jsonl"), ckpt_path=tmp_path / "a.ckpt"
    )

    line = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[-1])
    assert (25, 12) == (line["samples"], line["since"])
    assert "begins behind 12 samples, of which the checkpoint says nothing" in caplog.text


def test_a_rank_that_left_no_tally_is_named(monkeypatch):
    """Rank 0 waits for a limited time, and the receipt names the rank that it lacks."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(receipts, "WAIT", 0.05)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)

    def loader(rank):
        return SimpleNamespace(
            topology=Topology(rank=rank, world_size=3), progress=SimpleNamespace(tally=Tally(samples=5))
        )

    assert (Tally(samples=5), []) == receipts.collect("epoch", loader(2), first=False)
    found, missing = receipts.collect("epoch", loader(0), first=True)
    assert (10, [1]) == (found.samples, missing)


def test_a_file_that_cannot_be_written_is_no_end_of_the_run(make_data, make_trainer, recorder, tmp_path, caplog):
    """A full disk or a missing right is logged."""
    (tmp_path / "file").write_text("")
    make_trainer(max_epochs=1).fit(recorder(), datamodule=make_data(receipt=tmp_path / "file" / "r.jsonl"))

    assert "the receipt of train, epoch 0, was not written" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_order_leaves_receipts_too(make_data, make_trainer, recorder, shards, tmp_path, workers):
    """Those of a plan, also of a run that goes on from a checkpoint, with what was left out."""
    for split in ("train", "val"):
        shutil.copytree(f"{shards}{split}", tmp_path / split)
    damage(tmp_path / "train", "train05.x.pyd")

    def lines(name, **given):
        runs = given.pop("runs", [{"max_epochs": 2}])
        for run in runs:
            data = make_data(
                shards=f"{tmp_path}/", workers=workers, on_error="skip", receipt=tmp_path / name, size=8, **given
            )
            trainer = make_trainer(**run)
            trainer.fit(recorder(), datamodule=data, ckpt_path=tmp_path / "a.ckpt" if run is not runs[0] else None)
            trainer.save_checkpoint(tmp_path / "a.ckpt")
        return [one for one in command.read(str(tmp_path / name)).values() if one["split"] == "train"]

    planned = lines("planned.jsonl")
    streamed = lines("streamed.jsonl", order="shards")
    resumed = lines("resumed.jsonl", order="shards", runs=[{"max_steps": 3}, {"max_steps": 7}, {"max_epochs": 2}])

    assert planned == streamed == resumed
    assert [(36, {"corrupt-shard": 1}, ["train05"])] * 2 == [
        (line["samples"], line["skipped"], line["skipped_keys"]) for line in streamed
    ]


def test_receipts_need_a_disk(make_data):
    """A URL cannot be appended to."""
    with pytest.raises(ConfigError, match="receipt is a path on a disk"):
        make_data(receipt="s3://bucket/r.jsonl")
