"""Generated slides, images and exams with exact truth."""
