"""The Lightning data modules: tar shards to batches, and samples to tar shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import lightning as L

from bionemo.webdatamodule._engine.codecs import find_codecs, warn_of_unused
from bionemo.webdatamodule._engine.config import (
    ErrorPolicy,
    calls,
    directory,
    error_policy,
    joined_sources,
    mapping,
    order_of,
    pinned,
    plugin_set,
    sources,
    suffix_tuple,
    wds_options,
)
from bionemo.webdatamodule._engine.former import recognises_pickles, recognises_shards
from bionemo.webdatamodule._engine.loading import assemble as assembly
from bionemo.webdatamodule._engine.loading.assemble import Settings, SplitSettings
from bionemo.webdatamodule._engine.loading.placement import (
    default_loader_stages,
    default_stages,
    makes_batches,
    torch_stage,
)
from bionemo.webdatamodule._engine.reading.subset import subset
from bionemo.webdatamodule._engine.stages import resolve_stages
from bionemo.webdatamodule._engine.writing.conversion import Conversion, choose, materialised
from bionemo.webdatamodule._engine.writing.convert import convert
from bionemo.webdatamodule.components import Executor, KeyEncoder, Ref, Use, Writer
from bionemo.webdatamodule.errors import ConfigError, UsageError
from bionemo.webdatamodule.names import check_prefix
from bionemo.webdatamodule.options import local_path, one_of, whole_number
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.plugins import Plugins
from bionemo.webdatamodule.splits import Split, by_split

__all__ = ["PickledDataWDS", "SourceDataWDS", "Split", "WebDataModule"]

_STAGES: Mapping[str, tuple[Split, ...]] = {
    "fit": (Split.train, Split.val),
    "validate": (Split.val,),
    "test": (Split.test,),
    "predict": (Split.test,),
}

Directory: TypeAlias = "str | os.PathLike[str]"
Mixture: TypeAlias = "Sequence[Directory | tuple[Directory, float]] | Mapping[int, Sequence[tuple[Directory, float]]]"
Pipeline: TypeAlias = "Ref | Iterable[Ref]"
Calls: TypeAlias = "Sequence[tuple[str, Mapping[str, Any]]]"


class WebDataModule(L.LightningDataModule):
    """Batches from WebDataset tar shards, for the splits that a ``Trainer`` asks for.

    Every mapping from splits also takes their names: ``{"train": ...}`` for ``{Split.train: ...}``.

    Args:
        dirs_tars_wds: The directory of each split's shards, a path or a URL.
            A list of directories is one data set, a list of pairs of a directory and a weight is a mixture, and a
            mapping from steps to such lists is a mixture whose weights change linearly between these steps.
        n_samples: Samples of each split's epoch. ``None``, or a missing split, means all samples.
            A smaller number makes virtual epochs in training: each continues after the last one, until all samples
            were used. Evaluation uses the first samples.
        suffix_keys_wds: The suffixes of the fields to read. One gives 1-tuples to the first stage, several give
            tuples in this order. ``"__key__"`` is the sample's key. Other fields are never decoded.
        global_batch_size: Samples of a batch, summed over all ranks.
        prefix_tars_wds: Shards are named ``{prefix}-*.tar``.
        pipeline_wds: For each split the stages that run in workers: a stage or several, each a name, a
            ``Use("name", option=...)``, or a callable from an iterator to an iterator.
            By default ``untuple`` for one suffix.
        pipeline_prebatch_wld: For each split the stages that run after the loader; by default ``batch``, or none
            where ``pipeline_wds`` makes batches. As behind torch's ``DataLoader``, arrays and scalars of NumPy are
            tensors by then, if they can be, and tuples may be lists.
            In global order they run on each share, this rank's part of a global batch, and make one batch of it.
        kwargs_wds: For each split arguments of ``webdataset.WebDataset``.
        kwargs_wld: For each split options of the loader, such as ``num_workers``.
        invoke_wds: For each split ``(method, kwargs)`` pairs, called on the dataset after its pipeline.
        invoke_wld: The same for the loader.
        order: ``"global"``: a plan assigns samples, with equal steps on all ranks, each sample once per epoch, and
            exact resume. ``"shards"``: shards are assigned and streamed as in webdataset.
            ``None``: shards order if ``kwargs_wds`` has a shard argument, otherwise global order.
        seed: The seed of all random numbers.
        tail: What happens in training to samples that do not fill a global batch: ``"share"`` divides them between
            the last two batches, ``"drop"`` drops them, ``"fill"`` adds samples of the next epoch's order.
        shuffle_shards: Number of shards that are read in parallel in training, in a new order of shards in each epoch;
            0 shuffles all samples together. By default 0 for local shards; remote shards are read in small pieces,
            and their number follows from the size of the data and the global batch.
        loader: The loader: a name, a ``Use`` or a callable.
        pickles: ``"safe"`` builds known types only; ``"trusted"`` runs the code of pickles.
        allow_pickle: Further classes that safe pickles may build: the class itself, ``"package.module.Class"``, or
            ``"package.*"`` for all classes of a package.
        codecs: The codec of some suffixes, which are written as in ``suffix_keys_wds``: a name, a ``Use``, or an object
            with ``decode(view)``. By default that of the manifest, otherwise the one that is registered for the suffix.
        check: When the checksums of fields are verified: at the ``"first"`` read, ``"always"`` or ``"never"``.
        on_error: ``"raise"``, or ``"skip"`` to skip samples that cannot be read: a damaged or missing field, or
            one that its codec cannot decode. An error of a stage is never skipped.
        max_skipped: The number of samples that each process may skip.
        where: A subset of each split: a rule on keys such as :class:`~bionemo.webdatamodule.splits.Fold`, a list of
            keys, or a pair of a suffix and a predicate of its value such as ``("cls", is_rare)``. It is evaluated in
            ``setup``, where damage is always an error; the plan, its length and ``n_samples`` refer to these samples.
        join: For each split one or several directories whose fields are joined to its samples by key, such as labels
            that are stored apart from images. They must have each sample's key once, in any order; further keys are
            ignored. For an optional field such as ``"cls?"``, keys may be missing.
        expect: For each split the digest that its data must have, as ``webdatamodule info`` prints it; for a mixture
            one for each directory.
        resume: What happens with a checkpoint of other data, such as data that grew: ``"exact"`` raises an error,
            ``"next_epoch"`` skips the rest of that epoch, and the next one uses the current data.
        receipt: A file to which rank 0 appends a line of JSON at the end of each epoch: the number of delivered
            samples, an order-free hash of their numbers over all ranks, and what was skipped and why.
            ``webdatamodule receipt`` compares two such files.
        data_ranks: The source of this process's data rank: a ``DeviceMesh``, whose dimensions named ``dp``,
            ``data_parallel``, ``fsdp`` or similar count, a function that returns one, or a pair of the rank and the
            number of ranks. Processes with the same data rank, such as tensor-parallel ones, get the same batches.
            By default the ``Trainer``'s strategy decides, without a ``Trainer`` ``torch.distributed``.
        plugins: The plugins in which names are looked up; by default the installed ones.

    Raises:
        ConfigError: If an argument is wrong.
        UnknownNameError: If a name is not registered.
    """

    @recognises_shards
    def __init__(
        self,
        dirs_tars_wds: Mapping[Split, Directory | Mixture] | Mapping[str, Directory | Mixture],
        n_samples: Mapping[Split, int | None] | Mapping[str, int | None] | None = None,
        suffix_keys_wds: str | Iterable[str] = (),  # has to be given, as the next: LightningCLI takes no null before it
        global_batch_size: int = 0,
        prefix_tars_wds: str = "wdshards",
        pipeline_wds: Mapping[Split, Pipeline] | Mapping[str, Pipeline] | None = None,
        pipeline_prebatch_wld: Mapping[Split, Pipeline] | Mapping[str, Pipeline] | None = None,
        kwargs_wds: Mapping[Split, Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | None = None,
        kwargs_wld: Mapping[Split, Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | None = None,
        *,
        invoke_wds: Mapping[Split, Calls] | Mapping[str, Calls] | None = None,
        invoke_wld: Mapping[Split, Calls] | Mapping[str, Calls] | None = None,
        order: Literal["global", "shards"] | None = None,
        seed: int = 0,
        tail: Literal["share", "drop", "fill"] = "share",
        shuffle_shards: int | None = None,
        loader: Ref = "webloader",
        pickles: Literal["safe", "trusted"] = "safe",
        allow_pickle: Sequence[Any] = (),
        codecs: Mapping[str, Ref] | None = None,
        check: Literal["first", "always", "never"] = "first",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: int = 100,
        where: Mapping[Split, Any] | Mapping[str, Any] | None = None,
        join: Mapping[Split, Directory | Sequence[Directory]]
        | Mapping[str, Directory | Sequence[Directory]]
        | None = None,
        expect: Mapping[Split, str | Sequence[str]] | Mapping[str, str | Sequence[str]] | None = None,
        resume: Literal["exact", "next_epoch"] = "exact",
        receipt: Directory | None = None,
        data_ranks: Any = None,
        plugins: Plugins | None = None,
    ) -> None:
        super().__init__()
        directories = by_split("dirs_tars_wds", dirs_tars_wds)
        counts = by_split("n_samples", n_samples)
        stages = by_split("pipeline_wds", pipeline_wds)
        loader_stages = by_split("pipeline_prebatch_wld", pipeline_prebatch_wld)
        dataset_options = by_split("kwargs_wds", kwargs_wds)
        loader_options = by_split("kwargs_wld", kwargs_wld)
        dataset_calls = by_split("invoke_wds", invoke_wds)
        loader_calls = by_split("invoke_wld", invoke_wld)
        digests = by_split("expect", expect)
        subsets = by_split("where", where)
        joins = by_split("join", join)
        plugins = plugin_set("plugins", plugins)
        one_of("order", order, ("global", "shards", None))
        errors = ErrorPolicy(
            on_error=one_of("on_error", on_error, ("raise", "skip")),
            max_skipped=whole_number("max_skipped", max_skipped, least=0),
        )
        policy = Policy(pickles=one_of("pickles", pickles, ("safe", "trusted")), allow=allow_pickle)  # type: ignore[arg-type]  # it makes a tuple of names
        self._settings = Settings(
            suffixes=suffix_tuple("suffix_keys_wds", suffix_keys_wds),
            global_batch_size=whole_number("global_batch_size", global_batch_size, least=1),
            prefix=check_prefix(prefix_tars_wds),
            seed=whole_number("seed", seed, least=0),
            tail=one_of("tail", tail, ("share", "drop", "fill")),
            codecs=find_codecs(policy, codecs, plugins),
            check=one_of("check", check, ("first", "always", "never")),
            shuffle_shards=None if shuffle_shards is None else whole_number("shuffle_shards", shuffle_shards, least=0),
            resume=one_of("resume", resume, ("exact", "next_epoch")),
            receipt=None if receipt is None else str(Path(local_path("receipt", receipt)).absolute()),
            data_ranks=data_ranks,
        )
        self._splits: dict[Split, SplitSettings] = {}
        for split, given in directories.items():
            name = split.name
            options = wds_options(f"kwargs_wds[{name}]", dataset_options.get(split))
            chosen, reason = order_of(order, options)
            count = counts.get(split)
            chosen_loader = assembly.resolve_loader(
                loader, mapping(f"kwargs_wld[{name}]", loader_options.get(split)), plugins, split=name
            )
            own = _stages(f"pipeline_wds[{name}]", stages.get(split), plugins)
            behind = _stages(f"pipeline_prebatch_wld[{name}]", loader_stages.get(split), plugins)
            invoked = calls(f"invoke_wds[{name}]", dataset_calls.get(split))
            if behind is None and makes_batches(own or (), invoked):
                behind = ()
            self._splits[split] = SplitSettings(
                split=name,
                sources=assembly.with_stores(
                    f"dirs_tars_wds[{name}]",
                    pinned(f"expect[{name}]", sources(f"dirs_tars_wds[{name}]", given), digests.get(split)),
                    plugins,
                ),
                n_samples=None if count is None else whole_number(f"n_samples[{name}]", count, least=1),
                order=chosen,
                order_reason=reason,
                stages=default_stages(len(self._settings.suffixes), plugins) if own is None else own,
                torch_stage=torch_stage(chosen_loader, chosen, plugins, own_stages=behind is not None),
                loader_stages=default_loader_stages(chosen_loader, plugins) if behind is None else behind,
                options=options,
                loader=chosen_loader,
                dataset_calls=invoked,
                loader_calls=calls(f"invoke_wld[{name}]", loader_calls.get(split)),
                errors=error_policy(options, errors),
                joins=behind is None and chosen_loader.batch_size is None,
                joined=assembly.with_stores(
                    f"join[{name}]", joined_sources(f"join[{name}]", joins.get(split)), plugins
                ),
                where=subset(f"where[{name}]", subsets.get(split)),
            )
            assembly.check_order(self._splits[split])
        asked = [each.where.field for each in self._splits.values() if each.where]
        warn_of_unused(codecs, (*self._settings.suffixes, *asked))
        self._dataset: dict[Split, Any] = {}
        self._train_loader: Any = None
        self._resume: dict[str, Any] | None = None

    def prepare_data(self) -> None:
        """Do nothing, because the shards exist.

        Lightning calls this on one process of each node, so it must not change this object.
        """

    def setup(self, stage: str | None = None) -> None:
        """Create the datasets that a stage needs. Lightning calls this on every rank.

        Args:
            stage: ``"fit"`` for the train split, and the val split if there is one; ``"validate"`` for val;
                ``"test"`` or ``"predict"`` for test; ``None`` for all splits.

        Raises:
            ConfigError: If the stage or its split is unknown.
            PlanError: If there are too few samples for the ranks.
            ShardError: If shards are missing or broken.
        """
        name = getattr(stage, "value", stage)
        if name is not None and name not in _STAGES:
            raise ConfigError(f"setup takes the stages {', '.join(_STAGES)} or None, not {stage!r}")
        wanted = tuple(self._splits) if name is None else _STAGES[name]
        if name is not None and wanted[0] not in self._splits:
            raise ConfigError(
                f"{name} needs the split {wanted[0].name!r}, and dirs_tars_wds has "
                f"{', '.join(split.name for split in self._splits) or 'none'}"
            )
        for split in wanted:
            if split in self._splits:
                self._dataset[split] = self._setup_wds(split)
        if name == "fit" and self.trainer is not None:
            assembly.add_resume(self.trainer)

    def train_dataloader(self) -> Any:
        """Return the loader of the train split."""
        self._train_loader = self._setup_dataloader(Split.train)
        if self.trainer is None and self._resume is not None:  # otherwise a callback does it
            self._train_loader.load_state_dict(self.take_resume())
        return self._train_loader

    def val_dataloader(self) -> Any:
        """Return the loader of the val split, or ``[]`` if ``fit`` has none."""
        if Split.val not in self._splits and Split.train in self._dataset:
            return []
        return self._setup_dataloader(Split.val)

    def test_dataloader(self) -> Any:
        """Return the loader of the test split."""
        return self._setup_dataloader(Split.test)

    def predict_dataloader(self) -> Any:
        """Return the loader of the test split."""
        return self._setup_dataloader(Split.test)

    def state_dict(self) -> dict[str, Any]:
        """Return the train loader's cursor, for a checkpoint: plain numbers and strings."""
        if self._train_loader is None:
            return dict(self._resume or {})
        return dict(getattr(self._train_loader, "state_dict", dict)())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the cursor of a checkpoint, from which training continues.

        Without a ``Trainer`` the next :meth:`train_dataloader` begins there.
        """
        from lightning.pytorch.trainer.states import TrainerFn

        if self.trainer is None or self.trainer.state.fn is TrainerFn.FITTING:
            self._resume = dict(state_dict) or None

    def take_resume(self) -> dict[str, Any] | None:
        """Return the cursor of a checkpoint, once; for the resume callback."""
        state, self._resume = self._resume, None
        return state

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch, summed over all ranks.

        It can be set between runs, as Lightning's ``Tuner.scale_batch_size`` does with
        ``batch_arg_name="global_batch_size"``. It applies to loaders that are created later.
        """
        return self._settings.global_batch_size

    @global_batch_size.setter
    def global_batch_size(self, size: int) -> None:
        size = whole_number("global_batch_size", size, least=1)
        self._settings = replace(self._settings, global_batch_size=size)
        for split in self._dataset:
            self._dataset[split] = self._setup_wds(split)

    @property
    def skipped(self) -> dict[str, int]:
        """The number of samples that ``on_error="skip"`` has skipped, by split, in this process and its workers."""
        return {split.name: d.reader.skipped for split, d in self._dataset.items() if hasattr(d, "reader")}

    def _setup_wds(self, split: Split) -> Any:
        """Return the dataset of a split; subclasses may add to it, as in 1.0.0."""
        place = assembly.topology_of(self.trainer, self._settings.data_ranks)
        return assembly.make_dataset(self._settings, self._splits[split], place)

    def _setup_dataloader(self, split: Split) -> Any:
        """Return the loader of a split; subclasses may add to it, as in 1.0.0."""
        if split not in self._splits:
            raise ConfigError(f"there is no split {split.name!r} in dirs_tars_wds")
        if split not in self._dataset:
            raise UsageError(
                f"the loader of the split {split.name!r} was asked for before setup(); "
                "call setup('fit'), setup('validate'), setup('test') or setup('predict') first"
            )
        return assembly.make_loader(self, self._settings, self._splits[split], self._dataset[split])

    def __str__(self) -> str:
        """Return the directories of each split; Lightning's would read a batch to say less."""
        places = (
            f"{split.name}: {', '.join(s.directory for s in used.sources)}" for split, used in self._splits.items()
        )
        return f"{type(self).__name__}({'; '.join(places)})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling: loaders are not pickled, and made again on demand."""
        return {**self.__dict__, "_train_loader": None}


class SourceDataWDS(WebDataModule):
    """Samples of any source format, converted to tar shards once and read from them.

    ``prepare_data`` writes the shards of each split to ``f"{prefix_dir_tars_wds}{split.name}"``, in parallel. A split
    is published completely or not at all, and a rerun rewrites only what changed.

    Args:
        writer: The writer: its name, a ``Use("name", option=...)``, or a reader.
        names_subset: For each split the names of its samples; or, if the source lists its names, a fraction of
            them, such as ``0.8``, or a rule such as :class:`~bionemo.webdatamodule.splits.Fold`.
        prefix_dir_tars_wds: The prefix of the output directories, a path or a URL; the split's name is appended.
            Or a mapping from splits to directories.
        suffix_keys_wds: The suffixes of the fields to read, as in :class:`WebDataModule`.
        global_batch_size: Samples of a batch, summed over all ranks.
        n_tars_wds: Number of shards of each split; by default each shard has about 256 MiB.
        key_encoder: The encoder from names to keys: ``"dashes"`` replaces dots by dashes, ``"escaped"`` is reversible.
        executor: The executor of the conversion: ``"processes"`` on all cores, ``"serial"``, another name, a ``Use``,
            or any ``concurrent.futures.Executor``.
        **kwargs: Further arguments of :class:`WebDataModule`; ``n_samples`` defaults to all samples.

    Raises:
        ConfigError: If an argument is wrong.
        UnknownNameError: If a name is not registered.
    """

    def __init__(
        self,
        writer: Ref,
        names_subset: Mapping[Split, Any] | Mapping[str, Any],
        prefix_dir_tars_wds: Directory | Mapping[Split, Directory] | Mapping[str, Directory],
        suffix_keys_wds: str | Iterable[str],
        global_batch_size: int,
        *,
        n_tars_wds: int | None = None,
        key_encoder: Ref = "dashes",
        executor: Ref | Any = "processes",
        **kwargs: Any,
    ) -> None:
        names = by_split("names_subset", names_subset)
        directories = _directories(prefix_dir_tars_wds, names)
        super().__init__(directories, kwargs.pop("n_samples", None), suffix_keys_wds, global_batch_size, **kwargs)
        plugins = kwargs.get("plugins")
        self._conversion = Conversion(
            writer=choose(Writer, writer, plugins),
            names={split.name: materialised(split.name, given) for split, given in names.items()},
            directories={split.name: self._splits[split].sources[0].directory for split in names},
            stores={split.name: self._splits[split].sources[0].store for split in names},
            prefix=self._settings.prefix,
            n_shards=None if n_tars_wds is None else whole_number("n_tars_wds", n_tars_wds, least=1),
            key_encoder=choose(KeyEncoder, key_encoder, plugins),
            executor=choose(Executor, executor, plugins),
            codecs=self._settings.codecs,
        )

    def prepare_data(self) -> None:
        """Write the shards of every split that are missing, or whose source changed.

        Lightning calls this on one process of each node. On a shared disk, one of the nodes writes.

        Raises:
            InputError: If the source is bad; all problems are listed and nothing is written.
            ConversionError: If writing fails; published data are unchanged.
        """
        convert(self._conversion)


class PickledDataWDS(SourceDataWDS):
    """Pickle files, one for each sample and suffix, converted to tar shards once and read from them.

    The file of a sample is ``{dir_pickles}/{name}.{suffix_pickles}``.
    In the shards it is ``{"__key__": name.replace(".", "-"), suffix_pickles: pickle.dumps(data)}``.

    Args:
        dir_pickles: The directory of the pickle files.
        suffix_pickles: The suffix of the files, and of the field in the shards; or several of them.
        names_subset: For each split the names of its samples.
        prefix_dir_tars_wds: The prefix of the output directories; the split's name is appended.
        *args: Further arguments of :class:`WebDataModule` from ``global_batch_size`` on, in their order.
        n_tars_wds: Number of shards of each split; by default each shard has about 256 MiB.
        **kwargs: Further arguments of :class:`SourceDataWDS` and :class:`WebDataModule`.

    Raises:
        ConfigError: If an argument is wrong.
    """

    @recognises_pickles
    def __init__(
        self,
        dir_pickles: Directory,
        suffix_pickles: str | Iterable[str],
        names_subset: Mapping[Split, Any] | Mapping[str, Any],
        prefix_dir_tars_wds: Directory | Mapping[Split, Directory] | Mapping[str, Directory],
        *args: Any,
        n_tars_wds: int | None = None,
        **kwargs: Any,
    ) -> None:
        if len(args) > len(_PARENT_ARGUMENTS):
            raise ConfigError(f"*args are {', '.join(_PARENT_ARGUMENTS)}; {len(args)} were given")
        given = dict(zip(_PARENT_ARGUMENTS, args, strict=False))
        if twice := sorted(set(given) & set(kwargs)):
            raise ConfigError(f"{', '.join(twice)} is given both by position and by name")
        suffixes = suffix_tuple("suffix_pickles", suffix_pickles)
        super().__init__(
            Use("pickles", directory=str(Path(local_path("dir_pickles", dir_pickles))), suffixes=suffixes),
            names_subset,
            prefix_dir_tars_wds,
            kwargs.pop("suffix_keys_wds", suffixes),
            n_tars_wds=n_tars_wds,
            **given,
            **kwargs,
        )


_PARENT_ARGUMENTS = (
    "global_batch_size",
    "prefix_tars_wds",
    "pipeline_wds",
    "pipeline_prebatch_wld",
    "kwargs_wds",
    "kwargs_wld",
)


def _directories(given: Any, splits: Iterable[Split]) -> dict[Split, str]:
    """Return where the shards of each split go."""
    argument = "prefix_dir_tars_wds"
    if isinstance(given, str | os.PathLike):
        return {split: _output(argument, f"{os.fspath(given)}{split.name}") for split in splits}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{argument} is the beginning of a path or URL, or maps splits to them, not {given!r:.80}")
    named = by_split(argument, given)
    if missing := [split.name for split in splits if split not in named]:
        raise ConfigError(f"{argument} has no directory for the split {missing[0]}")
    return {split: _output(f"{argument}[{split.name}]", named[split]) for split in splits}


def _output(argument: str, given: object) -> str:
    return assembly.check_url(argument, directory(argument, given))


def _stages(argument: str, given: object, plugins: Plugins | None) -> tuple[Any, ...] | None:
    return None if given is None else resolve_stages(argument, given, plugins)
