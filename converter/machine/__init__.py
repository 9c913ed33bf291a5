"""What this machine has: cores and room on disks."""
