"""The entry point of the images."""
