"""Mammograms in, arrays and exams out: DICOM and PNG files, exam lists, and each decision taken."""
