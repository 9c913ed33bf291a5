"""Makes the demo model that `convert` ships: corpus generator, training and export."""
