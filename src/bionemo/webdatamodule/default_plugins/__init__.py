"""The plugins that come with the core: ordinary plugins whose names are reserved."""
