"""The engine: everything between the public classes and the plugins. Private."""
