"""The contenders, one module each, every one imported only inside its own environment."""
