"""Is the Hugging Face hub there? Asked once, for two seconds, before the libraries ask five times for half a minute."""

from __future__ import annotations

import functools
import os
import socket
import urllib.parse
import urllib.request


@functools.cache
def use_cache_if_unreachable() -> None:
    """Without a network (and without HF_HUB_OFFLINE=1, which says so) the libraries retry with growing pauses. If the
    hub's host does not answer, they are told to be offline: what is in the local cache still loads, the rest fails at
    once."""
    import datasets
    import huggingface_hub.constants as constants

    host = urllib.parse.urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():  # behind a proxy a direct connection says nothing
        return
    try:
        socket.create_connection(
            (host.hostname, host.port or (443 if host.scheme == "https" else 80)), timeout=2
        ).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that are started from here
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
