"""The job log: masks, timestamps, repair, the spool file and its upload."""
