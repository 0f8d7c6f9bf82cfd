"""Values that a job names and a provider of secrets keeps: resolved with the job's own token before the job begins."""
