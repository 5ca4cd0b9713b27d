import huggingface_hub.constants as constants

from posttrain import hub


def ask(monkeypatch, answer):
    """What the libraries believe of the network after one try."""
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.socket, "create_connection", answer)
    hub.use_cache_if_unreachable.__wrapped__()
    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


def test_an_unreachable_hub_is_not_asked_again(monkeypatch):
    def no_network(address, timeout):
        assert address == ("huggingface.co", 443) and timeout <= 5
        raise OSError("Name or service not known")

    assert ask(monkeypatch, no_network) == (True, True)


def test_a_reachable_one_is(monkeypatch):
    class Connection:
        def close(self):
            pass

    assert ask(monkeypatch, lambda address, timeout: Connection()) == (False, False)


def test_behind_a_proxy_nothing_is_concluded(monkeypatch):
    monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"https": "proxy:80"})
    assert ask(monkeypatch, None) == (False, False)
