"""What weights came from, what is installed, and under which terms."""
