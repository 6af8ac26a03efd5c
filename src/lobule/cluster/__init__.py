"""Work on many processes and machines with Ray. No other package imports Ray."""
