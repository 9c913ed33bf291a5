"""Recipe repositories, and what their recipes may not do."""
