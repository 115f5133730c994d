"""The canonical form of pickles.

Review in this order:

1. ``canonical``: the form, and how any value is written in it;
2. ``layouts``: recoding by copying bytes from their position in one stream to that in another;
3. ``recode``: learning the layouts.

Each imports only those before it.
"""
