"""How a model looks at an image."""
