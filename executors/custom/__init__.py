"""The custom executor: jobs run wherever the owner's driver program takes their scripts (``job-lifecycle.md`` 16)."""
