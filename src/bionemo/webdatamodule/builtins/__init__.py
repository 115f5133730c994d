"""The default plugins. They use the public modules only, as any plugin does."""
