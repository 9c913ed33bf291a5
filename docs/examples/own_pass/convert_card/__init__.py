"""A pass for convert that writes a model card into the converted folder."""
