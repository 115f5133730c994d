"""Every error and warning of this package, and how their messages count.

```text
WebDataModuleError
├── ConfigError (ValueError)        an argument is wrong, or two do not fit together
│   ├── PlanError                   no plan serves these samples, ranks and workers
│   └── PeerMismatchError           processes that must get the same batches got different ones
├── UsageError (RuntimeError)       a method was called too early or in the wrong place
├── PluginError                     a plugin broke its contract, or two register one name
│   └── UnknownNameError (LookupError)   no plugin registers the name
├── InputError (ValueError)         the source of a conversion is bad; nothing was written
├── ConversionError                 writing shards failed; published data are unchanged
├── ShardError                      the files of a data set are missing or wrong
│   ├── NoShardsError (FileNotFoundError)   there are no shards to read
│   ├── ManifestError               the manifest is missing, unreadable or of another version
│   ├── CorruptShardError           bytes are missing, changed or not a tar this package accepts
│   ├── ChangedDataError            the data changed while they were being read
│   ├── MissingFieldError (LookupError)     a sample lacks a requested suffix
│   └── RemoteError (OSError)       a remote shard could not be fetched or stored
├── DecodeError (ValueError)        a field could not be decoded
│   └── RefusedPickleError          the safe codec refuses a class or function of the pickle
├── ResumeError                     a checkpoint does not fit these data or this plan
└── WorkerError (RuntimeError)      a loader worker died, hung or failed
```
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

_E = TypeVar("_E", bound="WebDataModuleError")


class WebDataModuleError(Exception):
    """Base of all errors of this package.

    Args:
        message: What happened and what to do about it, in one or two sentences.
        **where: Who and where: any of ``plugin``, ``split``, ``sample``, ``shard``, ``key``, ``suffix``,
            ``file``, ``rank``, ``worker``, ``pid``. Values are kept in :attr:`where` and shown after the message.

    Instances can be pickled without loss, as for errors of worker processes.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, **where: object) -> None:
        super().__init__(message)
        self.where = {name: value for name, value in where.items() if value is not None}

    @property
    def message(self) -> str:
        """The message without place and code."""
        return str(self.args[0])

    def located(self: _E, **where: object) -> _E:
        """Add to the place, without changing what is known, and return this error."""
        self.where = {**{name: value for name, value in where.items() if value is not None}, **self.where}
        return self

    def __str__(self) -> str:
        place = ", ".join(f"{name}={value}" for name, value in self.where.items())
        return f"{self.message}{f' ({place})' if place else ''} [{self.code}]"


class ConfigError(WebDataModuleError, ValueError):
    """An argument is wrong, or two arguments do not fit together.

    The message names the argument, the given value and the accepted ones.
    """

    code = "config"


class PlanError(ConfigError):
    """No plan serves these samples, ranks and workers.

    The message has the numbers of samples, shards, ranks and workers and the global batch size, and the one to change.
    """

    code = "plan"


class PeerMismatchError(ConfigError):
    """Processes that must get the same batches, such as those of a tensor-parallel group, got different ones.

    The first batch of each loader is compared between processes with the same data rank.
    Give all processes the same arguments and data, ``data_ranks`` that fit the mesh, and stages that draw random
    numbers from :mod:`bionemo.webdatamodule.context`.
    """

    code = "peers"


class UsageError(WebDataModuleError, RuntimeError):
    """A method was called too early or in the wrong place, such as a loader before ``setup``.

    A ``Trainer`` calls the methods in the right order. In your own loop, call ``prepare_data``, ``setup`` with a stage,
    and then the method for the loader.
    """

    code = "usage"


class PluginError(WebDataModuleError):
    """A plugin broke its contract, or two plugins register one name.

    ``webdatamodule plugins`` lists the installed plugins.
    ``WEBDATAMODULE_DISABLED_PLUGINS=name`` disables one.
    """

    code = "plugin"


class UnknownNameError(PluginError, LookupError):
    """No plugin registers the name.

    The message lists similar names, and installed plugins that were left out.
    Correct the name, or install the plugin; ``webdatamodule plugins`` lists all components.
    """

    code = "unknown-name"


class InputError(WebDataModuleError, ValueError):
    """The source of a conversion is bad, and nothing was written.

    The message lists the first twenty problems and the number of the others.
    Fix them, or leave those samples out of ``names_subset``, and run the conversion again.
    """

    code = "input"


class ConversionError(WebDataModuleError):
    """Writing shards failed; published data are unchanged.

    Fix the cause in the message and run the conversion again: finished shards are kept.
    """

    code = "conversion"


class ShardError(WebDataModuleError):
    """The files of a data set are missing or wrong.

    The subclasses say in which way; ``webdatamodule verify DIR`` checks all files.
    """

    code = "shard"


class NoShardsError(ShardError, FileNotFoundError):
    """There are no shards to read: no directory, or no shards of that prefix in it.

    Correct the path or ``prefix_tars_wds``, or convert the data first.
    """

    code = "no-shards"

    def __str__(self) -> str:  # FileNotFoundError has a __str__ of its own
        return WebDataModuleError.__str__(self)


class ManifestError(ShardError):
    """The manifest is missing, unreadable, of another version, or the conversion never finished.

    Run the conversion again; for shards that another tool wrote, ``webdatamodule index DIR``.
    """

    code = "manifest"


class CorruptShardError(ShardError):
    """Bytes of a shard are missing or changed, or it is not a tar that this package accepts.

    Restore the shard, or convert again with ``--check``; ``webdatamodule verify DIR`` lists all damage.
    """

    code = "corrupt-shard"


class ChangedDataError(ShardError):
    """The data changed while they were being read, by a new conversion or by hand.

    Start again, so that all ranks and workers read the same data.
    """

    code = "changed-data"


class MissingFieldError(ShardError, LookupError):
    """A sample lacks a requested suffix; the message lists the suffixes that it has.

    Correct ``suffix_keys_wds``, make the field optional (``"cls?"``), or convert the data with that field.
    """

    code = "missing-field"


class RemoteError(ShardError, OSError):
    """A remote shard could not be fetched or stored after all retries.

    Check the URL, and that this machine may read it, or for a conversion write it.
    The message has the last answer of the server. Fetched data are kept.
    """

    code = "remote"

    def __str__(self) -> str:  # OSError has a __str__ of its own
        return WebDataModuleError.__str__(self)


class DecodeError(WebDataModuleError, ValueError):
    """A field could not be decoded; the message says which and why.

    If the source was bad, fix it and convert again. ``on_error="skip"`` skips samples with a field that its codec
    cannot decode. What a stage raises always ends the run: decode such fields with a codec (``codecs={"jpg": ...}``),
    or leave bad samples out in the stage.
    """

    code = "decode"


class RefusedPickleError(DecodeError):
    """The safe codec refuses a class or function of the pickle.

    If you trust the source of the data, allow the class with ``allow_pickle=[...]``, or everything with
    ``pickles="trusted"``.
    """

    code = "refused-pickle"


class ResumeError(WebDataModuleError):
    """A checkpoint does not fit these data or this plan, so a resume would repeat or lose samples.

    Restore the argument or the data that the message names. To start a new run from the model, load its weights
    instead of passing ``ckpt_path``.
    """

    code = "resume"


class WorkerError(WebDataModuleError, RuntimeError):
    """A worker process of the loader died, hung or failed.

    The message says what the worker was doing and how it ended. SIGKILL usually means that memory ran out: use fewer
    workers, smaller batches or a smaller ``prefetch_factor``.
    To debug a stage, run it in the main process with ``num_workers=0``.
    """

    code = "worker"


class PluginWarning(UserWarning):
    """An installed plugin was left out; the message says which and why."""


class DataWarning(UserWarning):
    """The data are used, but not exactly as the arguments request."""


def count(n: int, noun: str, plural: str = "") -> str:
    """Return a number of things for a message: ``1 shard``, ``2,000 shards``.

    Args:
        n: The number.
        noun: What they are, in the singular.
        plural: The plural, where that is not the noun with an ``s``.
    """
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"
