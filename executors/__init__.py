"""How a script runs. Knows nothing of GitLab and never imports ``runner``."""
