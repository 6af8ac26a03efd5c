"""Networks: shared parts that the methods compose."""
