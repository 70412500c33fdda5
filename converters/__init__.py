"""Make artifacts that edgeqwen runs: a checkpoint in, proven files out."""
