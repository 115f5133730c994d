"""URLs of remote directories and of the files in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_HTTP = ("http://", "https://")
_HOSTS: Mapping[str, str] = {
    **dict.fromkeys(("s3", "s3a", "gs", "gcs"), "bucket"),
    **dict.fromkeys(("az", "abfs", "abfss"), "container"),
    **dict.fromkeys(("http", "https"), "server"),
}
"""What comes first in the URLs of some schemes. Stores of others take what they like."""


def is_url(path: str) -> bool:
    """Return whether a directory is a URL: a scheme and ``://``. All else is a local path, whatever is in it."""
    return _URL.match(path) is not None


def scheme_of(url: str) -> str:
    """Return the scheme of a URL in lower-case letters."""
    found = _URL.match(url)
    return "" if found is None else found[1].lower()


def without_host(url: str) -> str:
    """Return what is wrong with a URL that has no bucket, container or server, and an example; else an empty text."""
    scheme = scheme_of(url)
    host = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2].partition(":")[0]
    if scheme not in _HOSTS or host.strip():
        return ""
    return f"names no {_HOSTS[scheme]}; write {scheme}://{_HOSTS[scheme]}/directory"


def is_web(url: str) -> bool:
    """Return whether a URL is one of a plain web server, which cannot list its files."""
    return url.startswith(_HTTP)


def join(url: str, name: str) -> str:
    """Return the URL of a file in a directory; what follows a ``?``, such as a signature, stays at the end."""
    directory, query = split_query(url)
    return f"{directory.rstrip('/')}/{quote(name) if is_web(url) else name}{query}"


def split_query(url: str) -> tuple[str, str]:
    """Return a URL up to its ``?``, and the rest; where it is not of a web server, it is all path."""
    path, mark, query = url.partition("?") if is_web(url) else (url, "", "")
    return path, mark + query


def shown(url: str) -> str:
    """Return a URL for messages, without user name, password and signature; a path as it is."""
    if not is_url(url):
        return url
    return re.sub(r"//[^/@]*@", "//", url).partition("?")[0]
