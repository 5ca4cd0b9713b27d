import socket

import pytest

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason="pip install -r requirements-serve.txt")

from posttrain.errors import UserError  # noqa: E402
from posttrain.serving.start import _listen  # noqa: E402

pytestmark = pytest.mark.long


def test_a_port_that_is_taken():
    with _listen("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(
            UserError, match=f"--host 127.0.0.1 --port {port}: Address already in use: name another --port"
        ):
            _listen("127.0.0.1", port)
    with _listen("127.0.0.1", port) as again:  # free at once
        assert again.family == socket.AF_INET


def test_an_address_that_is_not_ours():
    with pytest.raises(UserError, match="name another --port"):
        _listen("192.0.2.1", 0)


def test_a_host_that_is_no_name():
    with pytest.raises(UserError, match=r"--host a\.\.b --port 0: .*name another --port"):
        _listen("a..b", 0)
