"""From shards to what a network reads: samples, views, batches, inputs on the device."""
