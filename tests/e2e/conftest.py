"""The end-to-end tests use the same coordinator and daemons as the contract tests."""

from tests.contract.conftest import fake, make_daemon

__all__ = ["fake", "make_daemon"]
