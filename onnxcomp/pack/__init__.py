"""A serving pack: a model whose weights worker processes of one host share."""
