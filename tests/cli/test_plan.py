import builtins
import io
import json
import tarfile

import numpy as np
import pytest

from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._cli.plot import draw
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule._engine.sampling.summary import report_global, report_shards


@pytest.fixture
def shards(tmp_path):
    """Return a function that writes a directory of shards with so many samples each."""

    def write(name, *counts, prefix="wdshards"):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        for number, count in enumerate(counts):
            with tarfile.open(directory / f"{prefix}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in range(count):
                    member = tarfile.TarInfo(f"{number:03d}{sample:05d}.txt")
                    member.size = 2
                    tar.addfile(member, io.BytesIO(b"hi"))
        return str(directory)

    return write


def plan_of(n, size, **options):
    """Return a plan over one source of n samples."""
    return Plan(sources=(Source(samples=n),), global_batch_size=size, **options)


def test_the_plan_of_a_run_is_printed(shards, capsys):
    """Steps, last batches, shares and workers of each rank stand in a table."""
    code = main(
        [
            "plan",
            shards("train", 20, 20, 2),
            "--global-batch",
            "8",
            "--ranks",
            "3",
            "--workers",
            "4",
            "--accumulate",
            "4",
        ]
    )
    printed = capsys.readouterr().out.splitlines()

    assert 0 == code
    assert "global batches    6 of 8 samples, the last ones 8, 5, 5" in printed
    assert "optimizer steps   2, accumulating 4" in printed
    assert ["0", "6", "16", "3", "2"] == next(line for line in printed if line.startswith("0 ")).split()[:5]
    assert ["2", "6", "10", "2", "1"] == next(line for line in printed if line.startswith("2 ")).split()[:5]
    assert "note: 8 is not a multiple of 3 ranks: shares differ by one sample" in printed
    assert "note: the last optimizer step of an epoch has 2 of 4 batches" in printed


def test_json_holds_everything(shards, capsys):
    """Two weighted directories are a mixture, whose passes and ranks are in the JSON."""
    first, second = shards("first", 30, 30), shards("second", 7)
    weights, samples = ("--weights", "3", "1"), ("--global-batch", "10", "--n-samples", "40")
    code = main(["plan", first, second, *weights, *samples, "--ranks", "2", "--seed", "5", "--epoch", "2", "--json"])
    report = json.loads(capsys.readouterr().out)
    plan = Plan(
        sources=(Source(samples=60, weight=3), Source(samples=7, weight=1)),
        global_batch_size=10,
        n_samples=40,
        seed=5,
    )

    assert 0 == code
    assert [(first, 60, 2), (second, 7, 1)] == [(s["directory"], s["samples"], s["shards"]) for s in report["sources"]]
    assert [30, 10] == [source["drawn"] for source in report["mixture"]]
    assert [0.5, pytest.approx(10 / 7)] == [source["passes"] for source in report["mixture"]]
    assert [plan.shares(2, [0], rank, 2)[0].tolist() for rank in (0, 1)] == [
        r["first_samples"] for r in report["ranks"]
    ]


def test_a_run_that_cannot_be_is_said_with_the_numbers(shards, capsys):
    """Too small a batch for the ranks ends with exit code 1 and the remedy."""
    assert 1 == main(["plan", shards("train", 20), "--global-batch", "2", "--ranks", "3"])
    assert "problem: a global batch of 2 samples cannot serve 3 ranks" in capsys.readouterr().out


def test_fewer_shards_than_workers_is_said_at_once(shards, capsys):
    """In shards order idle workers are listed and the remedy is given."""
    arguments = ["plan", shards("train", 5, 6, 7), "--global-batch", "4", "--ranks", "2", "--workers", "2"]
    code = main([*arguments, "--order", "shards"])
    printed = capsys.readouterr().out

    assert 1 == code
    assert "fewer shards than workers: 3 shards for 2 ranks of 2 workers; convert into at least 4 shards" in printed
    assert ["1     1       0       idle"] == [line for line in printed.splitlines() if "idle" in line]


def test_impossible_plans_and_arguments_end_with_an_error(shards, capsys):
    """Wrong numbers are one line on standard error and exit code 2."""
    directory = shards("train", 20)

    assert 2 == main(["plan", directory, "--global-batch", "4", "--n-samples", "21"])
    assert 2 == main(["plan", directory, "--global-batch", "4", "--weights", "1", "2"])
    assert 2 == main(["plan", directory, "--global-batch", "4", "--order", "shards", "--plot", "x.png"])
    lines = capsys.readouterr().err.splitlines()
    assert ["21", "2 numbers for 1", "--plot"] == [
        part for part, line in zip(["21", "2 numbers for 1", "--plot"], lines, strict=True) if part in line
    ]
    assert 2 == main(["plan", directory, "--global-batch", "0"])


def test_evaluation_is_read_in_order(shards, capsys):
    """With --evaluation nothing is shuffled, and the first ids are the first of the data set."""
    assert 0 == main(["plan", shards("val", 20), "--global-batch", "4", "--evaluation"])
    printed = capsys.readouterr().out.splitlines()

    assert "a batch draws     from one place" in printed
    assert ["0     5        20       4           4            0 1 2 3 …"] == [li for li in printed if "0 1 2 3" in li][
        :1
    ]


def test_a_plan_is_the_one_that_the_data_module_follows(shards, capsys):
    """Evaluation drops nothing, whatever is said of training."""
    assert 0 == main(["plan", shards("val", 20), "--global-batch", "8", "--evaluation", "--tail", "drop", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert ("share", 0) == (report["tail"], report["dropped"])


def test_another_prefix_can_be_chosen(shards, capsys):
    """Shards of another prefix are read when it is given."""
    directory = shards("train", 4, 5, prefix="mine")

    assert 0 == main(["plan", directory, "--global-batch", "4", "--prefix", "mine", "--json"])
    assert 9 == json.loads(capsys.readouterr().out)["n_samples"]


def test_a_picture_is_drawn(shards, tmp_path, capsys):
    """The picture is a file of some size, in the format that its name says."""
    directory = shards("train", *[20] * 8)
    for name, start in (("plan.png", b"\x89PNG"), ("plan.svg", b"<?xml")):
        path = tmp_path / name
        assert 0 == main(["plan", directory, "--global-batch", "16", "--shuffle-shards", "2", "--plot", str(path)])
        assert path.read_bytes().startswith(start)
        assert path.stat().st_size > 10_000
    assert "lanes             2, so a rank has about" in capsys.readouterr().out


def test_the_picture_shows_the_epoch_and_what_is_fetched():
    """Each sample of a small epoch is a point where it is read; what is wanted is ahead of what is used."""
    counts = [20] * 8
    plan = Plan(sources=(Source(samples=160, shards=tuple(counts)),), global_batch_size=16, lanes=2)
    reading, wanted, cluster = draw(plan, counts, epoch=3).axes
    points = sorted(tuple(point) for dots in reading.collections for point in dots.get_offsets().tolist())
    ids = plan.order.ids(3, np.arange(16))
    ahead, used = (line.get_ydata() for line in wanted.lines)

    assert [(float(place), float(sample)) for place, sample in enumerate(ids)] == points[:16]
    assert 160 == len(points)
    assert (160, 160) == (ahead[-1], used[-1])
    assert all(ahead >= used)
    assert [1, 2, 4, 8, 16] == cluster.lines[0].get_xdata().tolist()
    assert 1 == cluster.lines[0].get_ydata()[0]
    assert "Epoch 3: where it reads (2 lanes)" == reading.get_title(loc="left")


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        ((1,), {}),
        ((0, 3, 0), {"lanes": 2}),
        (tuple(range(1, 40)), {"shuffle": False}),
        ((2,) * 5000, {"lanes": 100}),
    ],
)
def test_every_shape_of_data_can_be_drawn(counts, options):
    """One sample, empty shards, evaluation and thousands of shards have their picture, too."""
    plan = Plan(sources=(Source(samples=sum(counts), shards=counts),), global_batch_size=8, **options)
    draw(plan, counts).draw_without_rendering()


def test_the_shares_of_a_mixture_that_changes_are_printed(shards, capsys):
    """At its steps and half-way between them."""
    directories = [shards("first", 30, 30), shards("second", 40)]
    weights = ["--weights", "7", "3", "--weights-at", "100", "7", "3", "--weights-at", "300", "0", "1"]
    assert 0 == main(["plan", *directories, "--global-batch", "10", *weights])
    printed = capsys.readouterr().out

    for line in ("from step 100     70.0%, 30.0%", "from step 200     35.0%, 65.0%", "from step 300     0.0%, 100.0%"):
        assert line in printed
    assert 2 == main(["plan", *directories, "--global-batch", "10", "--weights-at", "5", "1", "1"])
    assert "--weights-at needs --weights, which says the weights at the beginning" in capsys.readouterr().err


def test_a_plan_says_what_a_cluster_fetches(shards, capsys):
    """Pieces, lanes, what a rank has open, what a batch draws from, and the bytes of all nodes."""
    directory = shards("train", *[40] * 16)
    cluster = ["--global-batch", "32", "--nodes", "4", "--ranks-per-node", "2"]
    assert 0 == main(["plan", directory, *cluster, "--remote", "--json"])
    remote = json.loads(capsys.readouterr().out)
    assert 0 == main(["plan", directory, *cluster, "--json"])
    local = json.loads(capsys.readouterr().out)
    assert 0 == main(["plan", directory, *cluster, "--remote"])
    printed = capsys.readouterr().out

    assert (8, 64, 32) == (len(remote["ranks"]), remote["lanes"], remote["draws_from"])
    assert 1.0 <= remote["fetched"] <= 1.05
    assert 4.0 == local["fetched"]
    for line in (
        "lanes             64, so a rank has about",
        "a batch draws     from 32 pieces",
        "the nodes fetch   1.0",
    ):
        assert line in printed
    assert 2 == main(["plan", directory, *cluster, "--ranks", "9"])
    assert "4 nodes of 2 ranks make 8 ranks, not 9" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere/x.png", "x.nonsense"])
def test_a_picture_that_cannot_be_written_is_told(shards, tmp_path, capsys, name):
    """A directory that is not there, or a format that is none."""
    assert 2 == main(["plan", shards("train", 20), "--global-batch", "4", "--plot", str(tmp_path / name)])
    assert f"--plot {tmp_path / name} cannot be written: " in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(shards, monkeypatch, capsys):
    """A picture without matplotlib ends with the command that installs it."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)

    assert 2 == main(["plan", shards("train", 20), "--global-batch", "4", "--plot", "x.png"])
    assert "bionemo-webdatamodule[plot]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("plan", "ranks", "workers"),
    [
        (plan_of(1000, 32), 4, 3),
        (plan_of(1001, 32), 4, 0),
        (plan_of(37, 4), 4, 8),
        (plan_of(37, 12, tail="drop"), 2, 2),
        (plan_of(37, 12, tail="fill"), 5, 2),
        (plan_of(5, 12), 2, 2),
    ],
)
def test_reports_count_what_the_plan_gives(plan, ranks, workers):
    """The numbers of the report are those that come when the plan is followed to the end."""
    report = report_global(plan, ranks=ranks, workers=workers, accumulate=3)
    steps = range(plan.n_batches(ranks))
    shares = [plan.shares(0, steps, rank, ranks) for rank in range(ranks)]

    assert [len(steps), -(-len(steps) // 3)] == [report["steps"], report["optimizer_steps"]]
    assert [sum(map(len, mine)) for mine in shares] == [row["samples"] for row in report["ranks"]]
    assert [len(mine[0]) for mine in shares] == [row["share"] for row in report["ranks"]]
    assert [len(mine[-1]) for mine in shares] == [row["last_share"] for row in report["ranks"]]
    assert [sum(len(mine[step]) for mine in shares) for step in steps[-3:]] == report["last_batches"]
    assert sum(map(len, sum(shares, []))) == plan.n_samples - report["dropped"] + report["borrowed"]
    assert len(steps) == sum(row["batches"] for row in report["workers"])
    assert (max(1, workers)) == len(report["workers"])


def test_notes_say_what_may_surprise():
    """Idle workers, dropped and borrowed samples, virtual epochs and tiny shares are pointed out."""
    notes = [
        *report_global(plan_of(37, 12, tail="drop"), ranks=2, workers=8)["notes"],
        *report_global(plan_of(37, 12, tail="fill"), ranks=2, workers=1)["notes"],
        *report_global(plan_of(37, 3, n_samples=10), ranks=2, workers=1)["notes"],
    ]

    assert [
        "each rank has 5 workers of 8 without a batch",
        "each epoch drops 1 sample at its end, not the same as the others",
        "the last batch takes 11 samples of the next epoch's order, repeated there",
        "3 is not a multiple of 2 ranks: shares differ by one sample",
        (
            "with fewer than two samples a rank and batch the last batch depends on the number of ranks; "
            "from a global batch of 4 on it does not"
        ),
        "it takes 3.7 epochs to see all 37 samples",
    ] == notes


def test_a_report_on_a_trillion_samples_is_quick_to_make():
    """Nothing of a report is counted out by going through the epoch."""
    report = report_global(plan_of(10**12, 1000), ranks=8, workers=4)

    assert 10**12 == sum(row["samples"] for row in report["ranks"])
    assert 10**9 == sum(row["batches"] for row in report["workers"])


def test_shards_are_dealt_to_ranks_and_then_to_workers():
    """The table is webdataset's own split, and unequal ranks are pointed out."""
    report = report_shards([5, 6, 7, 8, 9], ranks=2, workers=2, global_batch_size=4)

    assert [(0, 0, 2, 14), (0, 1, 1, 7), (1, 0, 1, 6), (1, 1, 1, 8)] == [
        tuple(row.values()) for row in report["workers"]
    ]
    assert (9, [21, 14]) == (report["steps"], [row["samples"] for row in report["ranks"]])
    assert [] == report["problems"]
    assert ["ranks have 14 to 21 samples, and each takes 18 in an epoch"] == [
        note.partition(":")[0] for note in report["notes"]
    ]


def test_evaluation_on_more_ranks_than_samples_is_a_note(shards, capsys):
    """It runs, with some samples on several ranks."""
    assert 0 == main(["plan", shards("val", 1), "--global-batch", "8", "--ranks", "2", "--evaluation"])
    assert "note: 1 sample for 2 ranks: some are evaluated on several of them" in capsys.readouterr().out


def test_steps_of_a_mixture_are_global_batches_whatever_their_size(shards, capsys):
    """An epoch of 20 samples has two full batches and one of four, so step 3 is the first of the second epoch."""
    arguments = ["plan", shards("a", 10), shards("b", 10), "--global-batch", "8", "--tail", "fill", "--json"]
    assert 0 == main([*arguments, "--weights", "1", "1", "--weights-at", "4", "1", "3", "--weights-at", "3", "0", "1"])
    rows = [(row["step"], row["epoch"], row["shares"]) for row in json.loads(capsys.readouterr().out)["shares"]]

    assert [(0, 0, [0.5, 0.5]), (3, 1, [0.0, 1.0]), (4, 1, [0.25, 0.75])] == [rows[0], rows[2], rows[4]]
    assert 2 == main([*arguments, "--weights-at", "3", "0", "1"])
    assert "--weights-at needs --weights" in capsys.readouterr().out  # with --json errors are JSON
