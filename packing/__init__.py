"""What a training sequence is: examples, loss weights, bin packing, shards, manifest and checks."""
