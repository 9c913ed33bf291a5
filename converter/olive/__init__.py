"""The bridge to Olive, which runs in a process of its own."""
