"""The folder that is written: where it may go, its files, and how it appears complete."""
