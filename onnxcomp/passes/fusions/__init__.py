"""What `fuse` knows: one file per operator, each of them a match, a check that says why not, a rewrite."""
