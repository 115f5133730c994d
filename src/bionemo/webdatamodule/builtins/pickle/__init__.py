"""The default pickle plugin: the writer ``pickles`` and the codec ``pickle``.

Review :mod:`.safe` first, which decides what a pickle may do; then :mod:`.write`, the form in which conversion stores
pickles; then :mod:`.fast`, which decodes pickles by comparison with one that ``safe`` accepted; then :mod:`.codec`,
which puts them together, and :mod:`.plugin`.
"""
