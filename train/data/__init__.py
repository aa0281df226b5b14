"""From shards to network inputs: samples, views, batches, tensors on the device."""
