"""The scanner: the contract with methods, open cases, the pipeline, stores and devices."""
