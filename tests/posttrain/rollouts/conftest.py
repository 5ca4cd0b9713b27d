import chat_server
import pytest


@pytest.fixture
def serving(monkeypatch):
    """A server of chat_server.py, and no key or proxy of the machine's own."""
    for name in ("POSTTRAIN_API_KEY", "OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return chat_server.serving
