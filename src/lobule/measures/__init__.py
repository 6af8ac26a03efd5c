"""Measures of predictions with confidence intervals; they work on arrays and open no files."""
