"""Stages of a job as shell, for places that take scripts and nothing else."""
