"""Is this machine fit for a run: :mod:`.machine` looks, :mod:`.trial` tries, :mod:`.findings` judges."""
