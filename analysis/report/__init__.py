"""One LaTeX document and one HTML page a study."""
