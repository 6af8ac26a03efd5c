"""Reports: one self-contained HTML page per case and one per cohort, and PDF from the same pages."""
