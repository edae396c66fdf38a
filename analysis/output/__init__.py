"""Files in every format, and what leads from each number to its runs."""
