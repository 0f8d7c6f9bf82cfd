"""The long-running process: composition root, scheduler, shutdown, reload, adoption."""
