"""Texts of the daemon's log that operators search for, and the setup of logging (formats: ``config-cli-daemon.md`` 11)."""
