"""A mutation campaign: small faults are put into the source one at a time, and the tests must notice them."""
