"""The configuration file: typed model, loading, diagnostics, edits in place."""
