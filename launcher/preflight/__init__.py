"""The test of the nodes of an allocation before a run begins on them."""
