"""Every error and warning of this package.

```text
WebDataModuleError
├── ConfigError (ValueError)        an argument is wrong, or two do not fit together
│   ├── PlanError                   no plan serves these samples, ranks and workers
│   └── PeerMismatchError           processes that must get the same batches got different ones
├── UsageError (RuntimeError)       a method was called too early or in the wrong place
├── PluginError                     a plugin broke its contract, or two offer one name
│   └── UnknownNameError (LookupError)   no plugin registers that name
├── InputError (ValueError)         the source of a conversion is bad; nothing was written
├── ConversionError                 writing shards failed; what was there before is untouched
├── ShardError                      what lies on disk is not what it should be
│   ├── NoShardsError (FileNotFoundError)   there are no shards to read
│   ├── ManifestError               the manifest is missing, unreadable or of another version
│   ├── CorruptShardError           bytes are missing, changed or not a tar this package accepts
│   ├── ChangedDataError            the data changed while they were being read
│   ├── MissingFieldError (LookupError)     a sample lacks a suffix that was asked for
│   └── RemoteError (OSError)       a remote shard could not be fetched or stored
├── DecodeError (ValueError)        a field could not be decoded
│   └── RefusedPickleError          the safe codec refuses what the pickle asks for
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
            ``file``, ``rank``, ``worker``, ``pid``. Values are kept in :attr:`where` and shown behind the message.

    Instances survive pickling, so an error of a worker process arrives whole.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, **where: object) -> None:
        super().__init__(message)
        self.where = {name: value for name, value in where.items() if value is not None}

    @property
    def message(self) -> str:
        """The sentence alone, without place and code."""
        return str(self.args[0])

    def located(self: _E, **where: object) -> _E:
        """Return this error with more of the place known; what was known already stays."""
        self.where = {**{name: value for name, value in where.items() if value is not None}, **self.where}
        return self

    def __str__(self) -> str:
        place = ", ".join(f"{name}={value}" for name, value in self.where.items())
        return f"{self.message}{f' ({place})' if place else ''} [{self.code}]"


class ConfigError(WebDataModuleError, ValueError):
    """An argument is wrong, or two arguments do not fit together.

    The message names the argument, what it got and what it takes.
    """

    code = "config"


class PlanError(ConfigError):
    """No plan serves these samples, ranks and workers.

    The message gives the numbers: samples, shards, ranks, workers, global batch size.
    Change one of them as it says.
    """

    code = "plan"


class PeerMismatchError(ConfigError):
    """Processes that must get the same batches got different ones, as those of one tensor-parallel group.

    The first batch of each loader is compared where processes share a data rank.
    Give all processes the same arguments and data, a data rank by ``data_ranks`` that fits the mesh, and stages that
    draw random numbers from :mod:`bionemo.webdatamodule.context`.
    """

    code = "peers"


class UsageError(WebDataModuleError, RuntimeError):
    """A method was called too early or in the wrong place, such as a loader before ``setup``.

    Under a ``Trainer`` the order is right by itself; in a loop of your own call ``prepare_data``, ``setup`` with a
    stage, and then the loader's method.
    """

    code = "usage"


class PluginError(WebDataModuleError):
    """A plugin broke its contract, or two plugins offer one name.

    ``webdatamodule plugins`` lists what is installed.
    A plugin is switched off with ``WEBDATAMODULE_DISABLED_PLUGINS=name``.
    """

    code = "plugin"


class UnknownNameError(PluginError, LookupError):
    """No plugin registers that name.

    The message offers near names and says which installed plugins were left out.
    Correct the name, or install the plugin; ``webdatamodule plugins`` lists what there is.
    """

    code = "unknown-name"


class InputError(WebDataModuleError, ValueError):
    """The source of a conversion is bad, and nothing was written.

    All problems are listed at once, the first twenty and the count of the rest.
    Fix them, or leave those samples out of ``names_subset``, and run the conversion again.
    """

    code = "input"


class ConversionError(WebDataModuleError):
    """Writing shards failed; what was published before is untouched.

    Fix the cause that the message gives and run the conversion again: finished shards are kept.
    """

    code = "conversion"


class ShardError(WebDataModuleError):
    """What lies on disk is not what it should be.

    The errors below say in which way; ``webdatamodule verify DIR`` looks at everything.
    """

    code = "shard"


class NoShardsError(ShardError, FileNotFoundError):
    """There are no shards to read: no directory, or nothing of that prefix in it.

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
    """Bytes of a shard are missing or changed, or it is no tar that this package accepts.

    Restore the shard, or convert again with ``--check``; ``webdatamodule verify DIR`` lists all damage.
    """

    code = "corrupt-shard"


class ChangedDataError(ShardError):
    """The data changed while they were being read, by a new conversion or by hand.

    Start again, so that all ranks and workers read the same data.
    """

    code = "changed-data"


class MissingFieldError(ShardError, LookupError):
    """A sample lacks a suffix that was asked for; the message says which suffixes it has.

    Correct ``suffix_keys_wds``, whose entries match whole suffixes exactly, or convert the data with that field.
    """

    code = "missing-field"


class RemoteError(ShardError, OSError):
    """A remote shard could not be fetched or stored after all retries.

    See that the URL is right and that this machine may read it, or write it where a conversion does;
    the message has what the server said last. What was fetched already is kept, so going on is quick.
    """

    code = "remote"

    def __str__(self) -> str:  # OSError has a __str__ of its own
        return WebDataModuleError.__str__(self)


class DecodeError(WebDataModuleError, ValueError):
    """A field could not be decoded; the message says which and why.

    If the bytes were bad from the beginning, fix the source and convert again.
    With ``on_error="skip"`` such samples are left out.
    """

    code = "decode"


class RefusedPickleError(DecodeError):
    """The safe codec refuses what the pickle asks for.

    If you trust where the data come from, allow the class that the message names
    with ``allow_pickle=[...]``, or everything with ``pickles="trusted"``.
    """

    code = "refused-pickle"


class ResumeError(WebDataModuleError):
    """A checkpoint does not fit these data or this plan, so going on would repeat or lose samples.

    Set what the message names as it was. To begin a new run from the model alone, load its weights
    instead of passing ``ckpt_path``.
    """

    code = "resume"


class WorkerError(WebDataModuleError, RuntimeError):
    """A worker process of the loader died, hung or failed.

    The message says what it was doing and how it ended; a worker killed by SIGKILL most often ran out of memory,
    which fewer workers, smaller batches or a smaller ``prefetch_factor`` avoid.
    With ``num_workers=0`` a stage that fails can be stepped through in the main process.
    """

    code = "worker"


class PluginWarning(UserWarning):
    """An installed plugin was left out; the message says which and why."""


class DataWarning(UserWarning):
    """The data can be used, but not quite as the arguments ask."""
