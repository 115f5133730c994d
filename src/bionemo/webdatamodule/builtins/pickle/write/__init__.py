"""The canonical form of pickles."""
