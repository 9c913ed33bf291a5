"""A sweep's jobs as tables and pictures."""
