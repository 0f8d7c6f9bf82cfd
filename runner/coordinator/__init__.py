"""The GitLab side of the wire: typed payloads, the port a job needs, the HTTP client."""
