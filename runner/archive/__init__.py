"""Archives of a job's files: choosing, packing and unpacking them, for artifacts and caches."""
