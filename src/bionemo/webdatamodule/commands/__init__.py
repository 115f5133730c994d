"""The subcommands of ``webdatamodule``, each a module with ``configure(parser)`` and ``run(args) -> exit code``."""
