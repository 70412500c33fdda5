"""How the embedded model `nano` is made: data generators, training, evaluation."""
