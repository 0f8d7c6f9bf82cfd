"""Room on the disk: what is kept beside jobs, in what budget, and what goes first."""
