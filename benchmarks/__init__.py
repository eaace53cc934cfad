"""Speed figures; see README.md."""
