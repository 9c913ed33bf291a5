"""The built-in recipes: data only."""
