"""Tests of this folder need the plugins of this repository; without them they are not collected."""

import importlib.util

if importlib.util.find_spec("bionemo_webdatamodule_fasta") is None:
    collect_ignore_glob = ["test_*.py"]
