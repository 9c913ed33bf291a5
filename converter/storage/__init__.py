"""What is kept on disk for later runs, and the hashes that name it."""
