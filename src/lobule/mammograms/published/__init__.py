"""The published preprocessing of mammograms: crop, centre, windows, resizing and patches.

`quirks="reference"` reproduces every number of the published code, including its errors. `quirks="fixed"`
repairs them.
"""
