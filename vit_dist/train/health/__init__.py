"""What notices that a node, a rank or a model is not well."""
