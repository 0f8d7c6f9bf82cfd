"""The Docker executor: a helper container and the job's own, on any engine that speaks Docker's API."""
