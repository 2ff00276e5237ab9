"""What is read from a run directory: plots, report.html, terminal screens. Knows neither torch nor the trainer."""
